"""GGUF files: read one, write the Hugging Face folder that it stands for.

llama.cpp stores the q and k projections of Llama-architecture models with each head's rows interleaved, because its
rotary embedding pairs neighbours (2i, 2i+1); Hugging Face pairs the halves (i, i + D/2). The permutation is undone here,
on the quantised rows (each row is a unit of its own), before they are dequantised.
Source: llama.cpp ``convert_hf_to_gguf.py`` (``LlamaModel.permute``) and the GGUF specification.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from gguf import GGMLQuantizationType as QType
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors import SafetensorError
from safetensors.torch import save_file

from inferoptim.errors import DataError, UnsupportedError
from inferoptim.models.cache import Progress, disk_full, require_room
from inferoptim.models.gguf_blocks import wanted, write_blocks
from inferoptim.models.gguf_metadata import Metadata
from inferoptim.models.gguf_tokenizer import tokenizer_files
from inferoptim.models.sources import BLOCKS_NAME

Array: TypeAlias = "np.ndarray[Any, Any]"

MAX_SHARD_BYTES = 2 * 1024**3

# general.architecture -> (architectures[0], model_type). Mistral files say 'llama'.
ARCHITECTURES = {
    "llama": ("LlamaForCausalLM", "llama"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
}

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK = {
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_BLOCK_QWEN2 = {f"attn_{x}.bias": f"self_attn.{x}_proj.bias" for x in "qkv"}
_BLOCK_QWEN3 = {f"attn_{x}_norm.weight": f"self_attn.{x}_norm.weight" for x in "qk"}
_DTYPE_NAMES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}


@dataclass(frozen=True, slots=True)
class GGUFSummary:
    """What a conversion found."""

    architecture: str
    quantization: str  # the type that most weights have, e.g. 'Q4_1'
    dtype: str  # of the tensors written
    file_names: tuple[str, ...]


def convert_gguf(path: Path, folder: Path, progress: Progress | None = None) -> GGUFSummary:
    """Write `path` as a Hugging Face folder: config, safetensors, tokenizer, generation config.

    Quantised and BF16 files become bfloat16, F16 files float16, F32 files float32. Of a 4-bit file the blocks are kept, too.

    Args:
        path: the GGUF file.
        folder: an existing, empty folder. The caller makes the whole atomic.
        progress: called with bytes written.

    Raises:
        DataError: truncated, damaged or incomplete file. UnsupportedError: an architecture, quantisation, tokenizer or
            rotary scaling that is not supported, named. CapacityError: the disk is full.
    """
    reader = _open(path)
    meta = Metadata(path, reader.fields)
    if meta.architecture not in ARCHITECTURES:
        raise UnsupportedError(
            f"{path}: architecture '{meta.architecture}' is not supported (supported: {', '.join(ARCHITECTURES)})"
        )
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = _config(meta, tensors)
    plan = _plan(path, meta, tensors, config)
    dtype = _target_dtype(tensors)
    config["torch_dtype"] = _DTYPE_NAMES[dtype]

    outputs: dict[str, Any] = {"config.json": config, **tokenizer_files(meta, config)}
    for name, content in outputs.items():
        text = json.dumps(content, ensure_ascii=False, indent=None if name == "tokenizer.json" else 2)
        (folder / name).write_text(text + "\n", encoding="utf-8")
    shards = _write_weights(meta, tensors, plan, config, dtype, folder, progress)
    shards += _write_blocks(meta, tensors, plan, config, folder)
    counts: dict[str, int] = {}
    for tensor in tensors.values():
        counts[tensor.tensor_type.name] = counts.get(tensor.tensor_type.name, 0) + int(tensor.n_elements)
    return GGUFSummary(
        architecture=config["architectures"][0],
        quantization=max(counts, key=lambda name: counts[name]),
        dtype=config["torch_dtype"],
        file_names=(*outputs, *shards),
    )


def _open(path: Path) -> GGUFReader:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise DataError(f"{path}: not a GGUF file (it begins with {magic!r})")
        return GGUFReader(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: truncated or damaged GGUF file ({error}); fetch it again") from error


def _config(meta: Metadata, tensors: dict[str, Any]) -> dict[str, Any]:
    """The config.json that transformers and `spec_from_config` read."""
    if meta.arch("expert_count", 0):
        raise UnsupportedError(f"{meta.path}: a mixture of experts; only dense models are supported")
    if "token_embd.weight" not in tensors:
        raise DataError(f"{meta.path}: tensor 'token_embd.weight' is missing")
    architecture, model_type = ARCHITECTURES[meta.architecture]
    hidden, heads = int(meta.require_arch("embedding_length")), int(meta.require_arch("attention.head_count"))
    head_dim = int(meta.arch("attention.key_length") or meta.arch("rope.dimension_count") or hidden // heads)
    if int(meta.arch("attention.value_length", head_dim)) != head_dim:
        raise UnsupportedError(f"{meta.path}: keys and values have heads of different sizes")
    if int(meta.arch("rope.dimension_count", head_dim)) != head_dim:
        raise UnsupportedError(f"{meta.path}: rotary embedding over a part of the head")
    config: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": int(tensors["token_embd.weight"].shape[1]),
        "hidden_size": hidden,
        "intermediate_size": int(meta.require_arch("feed_forward_length")),
        "num_hidden_layers": int(meta.require_arch("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(meta.arch("attention.head_count_kv", heads)),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": int(meta.require_arch("context_length")),
        "rms_norm_eps": _decimal(meta.require_arch("attention.layer_norm_rms_epsilon")),
        "rope_theta": _decimal(meta.arch("rope.freq_base", 10000.0)),
        "rope_scaling": _rope_scaling(meta, tensors, head_dim),
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": meta.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": meta.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": meta.get("tokenizer.ggml.padding_token_id"),
    }
    if model_type == "qwen2":
        del config["attention_bias"]  # Qwen2 always has q, k and v biases, and no such field
    window = meta.arch("attention.sliding_window")
    if window and meta.architecture == "llama":
        config.update(architectures=["MistralForCausalLM"], model_type="mistral", sliding_window=int(window))
    elif window:
        raise UnsupportedError(f"{meta.path}: sliding-window attention in a '{meta.architecture}' file")
    return config


def _decimal(value: float) -> float:
    """The shortest decimal that a stored float32 stands for: 9.999999747378752e-06 is 1e-05."""
    return float(str(np.float32(value)))


def _rope_scaling(meta: Metadata, tensors: dict[str, Any], head_dim: int) -> dict[str, Any] | None:
    kind = meta.arch("rope.scaling.type", "none")
    factor = float(meta.arch("rope.scaling.factor", 1.0))
    if "rope_freqs.weight" in tensors:
        return _llama3_scaling(meta, np.asarray(tensors["rope_freqs.weight"].data), head_dim)
    if kind == "none" or factor in (0.0, 1.0):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "type": "linear", "factor": factor}
    raise UnsupportedError(
        f"{meta.path}: rotary scaling '{kind}' is not supported (supported: linear, llama3)"
    )


def _llama3_scaling(meta: Metadata, divisors: Array, head_dim: int) -> dict[str, Any]:
    """Name the Llama 3 scaling whose per-frequency divisors the file stores; refuse divisors that it does not give.

    Source: transformers ``modeling_rope_utils._compute_llama3_parameters``.
    """
    factor, low, high, original = float(np.max(divisors)), 1.0, 4.0, 8192
    theta = float(meta.arch("rope.freq_base", 10000.0))
    inverse = 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    turns = original * inverse / (2 * np.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    expected = 1.0 / ((1 - smooth) / factor + smooth)
    if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-3):
        raise UnsupportedError(
            f"{meta.path}: 'rope_freqs.weight' is not the Llama 3 scaling; supported: linear, llama3"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _plan(path: Path, meta: Metadata, tensors: dict[str, Any], config: dict[str, Any]) -> dict[str, str]:
    """Source tensor name → Hugging Face name, complete and nothing left over."""
    block = dict(_BLOCK)
    if meta.architecture == "qwen2":
        block |= _BLOCK_QWEN2
    elif meta.architecture == "qwen3":
        block |= _BLOCK_QWEN3
    plan = {name: target for name, target in _TOP.items() if name in tensors or name != "output.weight"}
    for layer in range(config["num_hidden_layers"]):
        plan |= {f"blk.{layer}.{name}": f"model.layers.{layer}.{target}" for name, target in block.items()}
    if missing := [name for name in plan if name not in tensors]:
        raise DataError(f"{path}: {len(missing)} tensors are missing, the first is '{missing[0]}'")
    if extra := [name for name in tensors if name not in plan and name != "rope_freqs.weight"]:
        raise UnsupportedError(
            f"{path}: {len(extra)} tensors that a {config['architectures'][0]} does not have, the first is '{extra[0]}'"
        )
    return plan


def _target_dtype(tensors: dict[str, Any]) -> torch.dtype:
    types = {tensor.tensor_type for tensor in tensors.values()}
    if types <= {QType.F32}:
        return torch.float32
    return torch.float16 if types <= {QType.F32, QType.F16} else torch.bfloat16


def _write_weights(
    meta: Metadata,
    tensors: dict[str, Any],
    plan: dict[str, str],
    config: dict[str, Any],
    dtype: torch.dtype,
    folder: Path,
    progress: Progress | None,
) -> list[str]:
    """Dequantise into shards of at most `MAX_SHARD_BYTES`, one in memory at a time; an index if there are several."""
    sizes = {name: int(tensors[name].n_elements) * dtype.itemsize for name in plan}
    total = sum(sizes.values())
    require_room(folder, total)
    shards = list(_shards(sizes))
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    done, weight_map = 0, {}
    for file_name, members in zip(names, shards, strict=True):
        content = {}
        for name in members:
            content[plan[name]] = _tensor(meta, tensors[name], config, dtype)
            weight_map[plan[name]] = file_name
            done += sizes[name]
            if progress:
                progress("converting weights", done, total)
        try:
            save_file(content, folder / file_name, metadata={"format": "pt"})
        except (SafetensorError, OSError) as error:
            if "os error 28" in str(error) or getattr(error, "errno", None) == 28:
                raise disk_full(folder, total) from error
            raise
    if len(shards) == 1:
        return names
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [*names, "model.safetensors.index.json"]


def _write_blocks(
    meta: Metadata, tensors: dict[str, Any], plan: dict[str, str], config: dict[str, Any], folder: Path
) -> list[str]:
    """The weights of a 4-bit file as it holds them."""
    kept = wanted({name: tensors[name].tensor_type.name for name in plan})
    if not kept:
        return []
    require_room(folder, sum(int(tensors[name].n_bytes) for name in kept))
    path = folder / BLOCKS_NAME
    try:
        write_blocks(
            path,
            {plan[name]: partial(_rows, meta, tensors[name], config) for name in kept},
            {plan[name]: tensors[name].data.shape for name in kept},
            {plan[name]: kind for name, kind in kept.items()},
        )
    except OSError as error:
        if error.errno == 28:
            raise disk_full(folder) from error
        raise
    return [path.name]


def _shards(sizes: dict[str, int]) -> Iterator[list[str]]:
    shard: list[str] = []
    room = MAX_SHARD_BYTES
    for name, size in sizes.items():
        if shard and size > room:
            yield shard
            shard, room = [], MAX_SHARD_BYTES
        shard.append(name)
        room -= size
    yield shard


def _tensor(meta: Metadata, tensor: Any, config: dict[str, Any], dtype: torch.dtype) -> torch.Tensor:
    try:
        values = dequantize(_rows(meta, tensor, config), tensor.tensor_type)
    except NotImplementedError as error:
        raise UnsupportedError(
            f"{meta.path}: tensor '{tensor.name}' has type {tensor.tensor_type.name}, which cannot be dequantised"
        ) from error
    expected = tuple(int(n) for n in reversed(tensor.shape))
    if values.shape != expected:
        raise DataError(
            f"{meta.path}: tensor '{tensor.name}' has shape {values.shape} where {expected} is declared"
        )
    if not np.isfinite(values).all():
        raise DataError(f"{meta.path}: tensor '{tensor.name}' contains NaN or infinity: the file is damaged")
    return torch.from_numpy(np.array(values, dtype=np.float32)).to(dtype)


def _rows(meta: Metadata, tensor: Any, config: dict[str, Any]) -> Array:
    """A tensor's rows, values or quantised blocks, in Hugging Face's order."""
    data: Array = tensor.data
    if meta.architecture == "llama" and (match := re.search(r"\.attn_([qk])\.weight$", tensor.name)):
        data = unpermute(data, config["num_attention_heads" if match[1] == "q" else "num_key_value_heads"])
    return data


def unpermute(rows: Array, num_heads: int) -> Array:
    """Undo llama.cpp's row order: [heads · (D/2, 2), …] back to Hugging Face's [heads · (2, D/2), …].

    Args:
        rows: [num_heads · D, row], of any type: values or quantised blocks.
    """
    n_rows, *rest = rows.shape
    grouped: Array = rows.reshape(num_heads, n_rows // num_heads // 2, 2, *rest).swapaxes(1, 2)
    flat: Array = grouped.reshape(rows.shape)
    return flat
