"""Writes GGUF files of tiny models, as llama.cpp's converter would, from a Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's row order of q and k: neighbours are rotated together, not halves."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
        .swapaxes(1, 2)
        .reshape(weight.shape)
    )


def write_gguf(
    folder: Path,
    path: Path,
    architecture: str = "llama",
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    pre: str = "smollm",
) -> None:
    """Write the model in `folder` (config.json, model.safetensors, byte-level tokenizer.json) to `path`."""
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(str(path), architecture)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    theta = (config.get("rope_parameters") or {}).get("rope_theta", config.get("rope_theta", 10000.0))
    writer.add_rope_freq_base(theta)
    _add_tokenizer(writer, folder, config, pre)
    for name, tensor in load_file(folder / "model.safetensors").items():
        data = tensor.to(torch.float32).numpy()
        if architecture == "llama" and ".q_proj." in name:
            data = permute(data, heads)
        if architecture == "llama" and ".k_proj." in name:
            data = permute(data, kv_heads)
        quantised = data if data.ndim == 1 else gguf.quants.quantize(data, kind)
        writer.add_tensor(_rename(name), quantised, raw_dtype=None if data.ndim == 1 else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _rename(name: str) -> str:
    fixed = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in fixed:
        return fixed[name]
    _, _, layer, rest = name.split(".", 3)
    part, suffix = rest.rsplit(".", 1)
    return f"blk.{layer}.{_NAMES[part]}.{suffix}"


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path, config: dict[str, object], pre: str) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocab: dict[str, int] = {**tokenizer["model"]["vocab"]}
    added = {t["content"]: t["id"] for t in tokenizer["added_tokens"]}
    vocab.update(added)
    tokens = sorted(vocab, key=lambda token: vocab[token])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in added else 1 for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(config["bos_token_id"])  # type: ignore[arg-type]
    writer.add_eos_token_id(config["eos_token_id"])  # type: ignore[arg-type]
    settings = folder / "tokenizer_config.json"
    if settings.is_file() and (template := json.loads(settings.read_text()).get("chat_template")):
        writer.add_chat_template(template)
