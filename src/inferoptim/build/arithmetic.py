"""How many bytes a checkpoint must take: elements × bits + scales. What `inspect` holds the files against."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import torch

from inferoptim.build.quantise import ProductReport, group_size_for
from inferoptim.build.recipe import Recipe
from inferoptim.build.source import PRODUCTS
from inferoptim.models.spec import ModelSpec
from inferoptim.models.weights import expected_shapes


def source_tensor_bytes(spec: ModelSpec, dtype: torch.dtype) -> int:
    """Bytes of the model's tensors, all in `dtype`."""
    return sum(prod(shape) for shape in expected_shapes(spec).values()) * dtype.itemsize


def predicted_tensor_bytes(
    spec: ModelSpec, recipe: Recipe, dtype: torch.dtype, reports: Iterable[ProductReport]
) -> int:
    """Bytes of the quantised checkpoint's tensors.

    A quantised linear of N × K takes N·K·bits/8 for its elements and dtype bytes for each scale (one a channel, a group or
    a tensor); norms, biases, embedding, head and kept products stay in `dtype`; packed layouts add their two int64 sizes,
    a quantised KV-cache two float32 scales a layer.
    """
    kept = {(r.layer, m) for r in reports if r.kept for m in PRODUCTS[r.product]}
    modules = {m for several in PRODUCTS.values() for m in several}
    total = 0
    for name, shape in expected_shapes(spec).items():
        parts = name.split(".")
        layer, module = (int(parts[2]), ".".join(parts[3:-1])) if parts[1] == "layers" else (-1, "")
        quantised = module in modules and parts[-1] == "weight" and recipe.quantization != "none"
        if not quantised or (layer, module) in kept:
            total += prod(shape) * dtype.itemsize
            continue
        total += _linear_bytes(shape[0], shape[1], recipe, dtype)
    if recipe.kv_cache_dtype != "auto":
        total += spec.num_layers * 2 * 4
    return total


def streaming_bytes(spec: ModelSpec, dtype: torch.dtype, tokens: int) -> int:
    """Most memory that a pass of `tokens` needs while layers are read one after the other: embedding and head, a layer and its
    copies, logits in `dtype` and float32, and what stands between gate, up and down."""
    layer = spec.body_parameters // spec.num_layers
    ends = 2 * spec.head_parameters * dtype.itemsize
    return (
        ends
        + 3 * layer * 4
        + tokens * (spec.vocab_size * (dtype.itemsize + 4) + 6 * spec.intermediate_size * 4)
    )


def read_bytes(spec: ModelSpec, dtype: torch.dtype, tensors_bytes: int, *, head_rounded: bool) -> int:
    """Bytes of weights that a decode step reads: all but the embedding, and the head as the engine holds it.

    Args:
        tensors_bytes: of the checkpoint, whose head is dense.
        head_rounded: to int8, a float32 scale a row.
    """
    rows, dense = spec.vocab_size, spec.vocab_size * spec.hidden_size * dtype.itemsize
    read = tensors_bytes if spec.tied_embeddings else tensors_bytes - dense
    return read - dense + rows * (spec.hidden_size + 4) if head_rounded else read


def _linear_bytes(n: int, k: int, recipe: Recipe, dtype: torch.dtype) -> int:
    if recipe.quantization in ("int8", "fp8"):
        scales = 1 if recipe.granularity == "tensor" else n
        static = 4 if recipe.activations == "static" else 0
        return n * k + scales * dtype.itemsize + static
    bits = 4 if recipe.quantization == "int4-weight-only" else 8
    groups = k // group_size_for(k, recipe.group_size) if bits == 4 else 1
    words = -(-k * bits // 32)
    zeros = 0 if recipe.symmetric else -(-n * bits // 32) * groups * 4
    return n * words * 4 + n * groups * dtype.itemsize + zeros + 2 * 8
