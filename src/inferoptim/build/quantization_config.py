"""The ``quantization_config`` that tells other engines how to read the checkpoint: compressed-tensors, or ModelOpt.

Source: compressed-tensors ``QuantizationConfig`` / ``QuantizationArgs``; ModelOpt ``hf_quant_config.json``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from inferoptim.build.quantise import ProductReport, group_size_for
from inferoptim.build.recipe import Recipe
from inferoptim.build.source import PRODUCTS
from inferoptim.models.spec import ModelSpec

_FORMAT = {
    "int8": "int-quantized",
    "fp8": "float-quantized",
    "int8-weight-only": "pack-quantized",
    "int4-weight-only": "pack-quantized",
}
# How transformers is asked to load. Left to itself it makes empty parameters first, by compressing a model without data, and
# there compressed-tensors (0.20) leaves zero points unpacked: [N, G] where every checkpoint has [N / 8, G], which is refused.
# Dequantised while they load, the same files are read as they were written. vLLM ignores the field.
_LOADING: dict[bool, dict[str, bool]] = {True: {}, False: {"dequantize": True}}


def compressed_tensors_config(
    recipe: Recipe, spec: ModelSpec, reports: Iterable[ProductReport], version: str
) -> dict[str, Any] | None:
    """``quantization_config`` of the checkpoint's config.json; None where nothing is quantised.

    Args:
        reports: of every product; those kept in high precision go to `ignore`.
        version: of the compressed-tensors layout.
    """
    if recipe.quantization == "none" and recipe.kv_cache_dtype == "auto":
        return None
    ignore = ["lm_head"]
    for report in reports:
        if report.kept:
            ignore += [f"model.layers.{report.layer}.{module}" for module in PRODUCTS[report.product]]
    return {
        "quant_method": "compressed-tensors",
        "format": _FORMAT.get(recipe.quantization, "dense"),
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "version": version,
        "config_groups": {} if recipe.quantization == "none" else _groups(recipe, spec),
        "ignore": ignore,
        "kv_cache_scheme": _kv(recipe),
        **_LOADING[recipe.symmetric],
    }


def _groups(recipe: Recipe, spec: ModelSpec) -> dict[str, Any]:
    activations = None
    if recipe.quantises_inputs:
        static = recipe.activations == "static"
        activations = _args(
            8,
            "float" if recipe.quantization == "fp8" else "int",
            "tensor" if static else "token",
            dynamic=not static,
        )
    if recipe.quantization != "int4-weight-only":
        weights = _args(8, "float" if recipe.quantization == "fp8" else "int", recipe.granularity)
        return {"group_0": _group(["Linear"], weights, activations, recipe)}
    inputs = {
        "qkv": spec.hidden_size,
        "o": spec.num_heads * spec.head_dim,
        "gate_up": spec.hidden_size,
        "down": spec.intermediate_size,
    }
    sizes: dict[int, list[str]] = {}
    for product, k in inputs.items():
        targets = [f"re:.*{re.escape(module)}$" for module in PRODUCTS[product]]
        sizes.setdefault(group_size_for(k, recipe.group_size), []).extend(targets)
    return {
        f"group_{i}": _group(
            targets, _args(4, "int", "group", group_size=size, symmetric=recipe.symmetric), None, recipe
        )
        for i, (size, targets) in enumerate(sorted(sizes.items()))
    }


def _group(
    targets: list[str], weights: dict[str, Any], inputs: dict[str, Any] | None, recipe: Recipe
) -> dict[str, Any]:
    return {
        "targets": targets,
        "weights": weights,
        "input_activations": inputs,
        "output_activations": None,
        "format": _FORMAT[recipe.quantization],
    }


def _args(
    bits: int,
    kind: str,
    strategy: str,
    *,
    dynamic: bool = False,
    group_size: int | None = None,
    symmetric: bool = True,
) -> dict[str, Any]:
    return {
        "num_bits": bits,
        "type": kind,
        "symmetric": symmetric,
        "strategy": strategy,
        "dynamic": dynamic,
        "group_size": group_size,
        "block_structure": None,
        "actorder": None,
        "observer": None if dynamic else "minmax",
        "observer_kwargs": {},
    }


def _kv(recipe: Recipe) -> dict[str, Any] | None:
    if recipe.kv_cache_dtype == "auto":
        return None
    return _args(8, "float" if recipe.kv_cache_dtype == "fp8" else "int", "tensor")


def modelopt_config(recipe: Recipe, ignore: list[str]) -> dict[str, Any]:
    """``hf_quant_config.json`` for TensorRT-LLM: FP8 with one scale per tensor, calibrated inputs."""
    return {
        "producer": {"name": "inferoptim"},
        "quantization": {
            "quant_algo": "FP8",
            "kv_cache_quant_algo": "FP8" if recipe.kv_cache_dtype == "fp8" else None,
            "exclude_modules": ignore,
        },
    }
