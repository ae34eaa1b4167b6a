"""Tiny random models, saved as Hugging Face folders: real files through the real loading code, in milliseconds."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers


def save_tiny_llama(folder: Path, **overrides: object) -> None:
    """A 2-layer Llama with random weights (seeded), large enough for every code path."""
    from transformers import LlamaConfig, LlamaForCausalLM

    fields: dict[str, object] = {
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
        "bos_token_id": 1,
        "initializer_range": 0.2,  # peaked logits, so that no greedy choice is a near-tie
    }
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**{**fields, **overrides})).float().save_pretrained(folder)


def to_eight_bits(folder: Path, kind: torch.dtype, kept: tuple[str, ...] = (), inputs: bool = True) -> None:
    """Make a saved model a compressed-tensors checkpoint of float8 or int8, a scale a channel.

    Args:
        kept: parts of the names of products that stay as they are.
        inputs: are quantised, too.
    """
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if "_proj." in name and not any(k in name for k in kept)]:
        weight = tensors[name].float()
        scale = weight.abs().amax(1, keepdim=True) / 100
        tensors[name] = (weight / scale).to(kind)
        tensors[f"{name}_scale"] = scale
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    weights = {"num_bits": 8, "type": "float" if kind == torch.float8_e4m3fn else "int"}
    group = {"weights": weights, "input_activations": {"dynamic": True} if inputs else {}}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors", "format": "naive-quantized", "config_groups": {"group_0": group},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def tiny_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer of 256 ids without merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages[0].content }}"}))
