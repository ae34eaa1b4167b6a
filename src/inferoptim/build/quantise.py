"""One layer quantised: smoothed, scaled, rounded, with the error of each product on the calibration inputs.

Legend: B sequences · L tokens of each · T = B * L · H hidden size · K input features · N output features · G groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from inferoptim.build.recipe import Recipe
from inferoptim.build.source import PRODUCTS, Layer, SourceModel, exact
from inferoptim.kernels.reference import quantize_kv
from inferoptim.quant import gptq, smooth
from inferoptim.quant.grid import FP8, INT4, INT8, Grid, encode
from inferoptim.quant.observers import tensor_scale, weight_scales
from inferoptim.quant.packing import pack_rows

_GRID = {"fp8": FP8, "int8": INT8, "int8-weight-only": INT8, "int4-weight-only": INT4}
_NORM_BEFORE = {"qkv": "input_layernorm.weight", "gate_up": "post_attention_layernorm.weight"}
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class ProductReport:
    """How one product of one layer fared."""

    layer: int
    product: str  # qkv, o, gate_up or down
    error: float  # ‖quantised − exact‖ / ‖exact‖ of its output on the calibration inputs
    kept: bool  # left in the model's type, since the error passed the recipe's limit
    alpha: float | None = None  # SmoothQuant's exponent, where smoothing was tried


@dataclass(slots=True)
class QuantisedLayer:
    """What a layer becomes.

    Attributes:
        tensors: as the checkpoint will hold them, by their names inside the layer.
        reports: one a product.
        drift: ‖x_quantised − x_exact‖ / ‖x_exact‖ of the residual stream after this layer, all layers so far quantised.
    """

    tensors: Tensors = field(repr=False)
    reports: list[ProductReport]
    drift: float


def group_size_for(k: int, wanted: int) -> int:
    """The largest group of at most `wanted` channels, halving, that divides k (compressed-tensors needs whole groups)."""
    while wanted > 1 and k % wanted:
        wanted //= 2
    return wanted


def quantise_layer(
    source: SourceModel,
    layer: Layer,
    recipe: Recipe,
    dtype: torch.dtype,
    x_exact_BLH: torch.Tensor,
    x_BLH: torch.Tensor,
) -> tuple[QuantisedLayer, torch.Tensor, torch.Tensor]:
    """Quantise one layer on the inputs that the quantised layers before it give.

    Args:
        layer: float32 tensors; rewritten by smoothing.
        dtype: of what stays dense, and of the scales, so that other engines read the same values.
        x_exact_BLH: input of the layer in the original model.
        x_BLH: input in the model quantised so far.

    Returns:
        (the layer, the next layer's exact input, its input in the quantised model).
    """
    next_exact = source.run(layer, x_exact_BLH, exact(layer))
    inputs: Tensors = {}

    def record(name: str, x: torch.Tensor) -> torch.Tensor:
        inputs[name] = x.flatten(0, -2)
        return F.linear(x, layer.weight(name))

    kv: list[torch.Tensor] = []
    source.run(layer, x_BLH, record, lambda k, v: kv.extend((k, v)))
    alphas = _smooth(layer, inputs, recipe, dtype) if recipe.quantization == "int8" and recipe.smooth else {}
    tensors: Tensors = {}
    reports, simulated = [], {}
    for product in PRODUCTS:
        rounded, stored, quantise_inputs = _quantise_product(layer, product, inputs[product], recipe, dtype)
        reference = inputs[product] @ layer.weight(product).T
        got = quantise_inputs(inputs[product]) @ rounded.T
        error = float((got - reference).norm() / reference.norm().clamp_min(1e-12))
        kept = recipe.keep_above is not None and error > recipe.keep_above
        if kept or recipe.quantization == "none":
            dense = {f"{m}.weight": layer.tensors[f"{m}.weight"].to(dtype) for m in PRODUCTS[product]}
            stored, quantise_inputs = dense, _as_is
            rounded = layer.weight(product).to(dtype).float()
        simulated[product] = (rounded, quantise_inputs)
        tensors |= stored
        reports.append(ProductReport(layer.index, product, error, kept, alphas.get(product)))

    def quantised(name: str, x: torch.Tensor) -> torch.Tensor:
        weight, round_inputs = simulated[name]
        return F.linear(round_inputs(x), weight)

    next_x = source.run(layer, x_BLH, quantised)
    tensors |= {n: t.to(dtype) for n, t in layer.tensors.items() if n.endswith(".bias") or "norm" in n}
    if recipe.kv_cache_dtype != "auto":
        grid = FP8 if recipe.kv_cache_dtype == "fp8" else INT8
        for name, values in zip(("self_attn.k_scale", "self_attn.v_scale"), kv, strict=True):
            tensors[name] = tensor_scale(values, grid, recipe.observer).to(torch.float32).view(1)
    drift = float((next_x - next_exact).norm() / next_exact.norm().clamp_min(1e-12))
    return QuantisedLayer(tensors, reports, drift), next_exact, next_x


def _smooth(layer: Layer, inputs: Tensors, recipe: Recipe, dtype: torch.dtype) -> dict[str, float]:
    """Fold smoothing factors into the layer where they lower the error; rewrites its tensors and `inputs`.

    The norm is rounded to the model's type first and the weight takes what it really divides by, so that folding is exact.
    """
    alphas: dict[str, float] = {}
    for product in ("down", "qkv", "gate_up"):  # down first: it rewrites rows of up
        weight = layer.weight(product)
        s, alpha = smooth.best_factors(inputs[product], weight, INT8, smooth.int8_inputs)
        alphas[product] = alpha
        if alpha == 0:
            continue
        if product == "down":
            layer.tensors["mlp.up_proj.weight"] = layer.tensors["mlp.up_proj.weight"] / s[:, None]
        else:
            norm = layer.tensors[_NORM_BEFORE[product]]
            divided = (norm / s).to(dtype).float()
            s = torch.where(divided == 0, torch.ones_like(s), norm / divided)
            layer.tensors[_NORM_BEFORE[product]] = torch.where(divided == 0, norm, divided)
        inputs[product] = inputs[product] / s
        layer.set_weight(product, weight * s)
    return alphas


def _as_is(x: torch.Tensor) -> torch.Tensor:
    return x


def _fp8_inputs(x: torch.Tensor) -> torch.Tensor:
    q, scale = quantize_kv(x, torch.float8_e4m3fn)
    return q.float() * scale[..., None]


def _quantise_product(
    layer: Layer, product: str, x_TK: torch.Tensor, recipe: Recipe, dtype: torch.dtype
) -> tuple[torch.Tensor, Tensors, Callable[[torch.Tensor], torch.Tensor]]:
    """(what is left of the weight [N, K], its tensors in the checkpoint, the rounding of its inputs)."""
    if recipe.quantization == "none":
        return layer.weight(product).to(dtype).float(), {}, _as_is
    grid = _GRID[recipe.quantization]
    stored: Tensors = {}
    rounded: list[torch.Tensor] = []
    importance = x_TK.square().mean(0)
    round_inputs: Callable[[torch.Tensor], torch.Tensor] = _as_is
    if recipe.quantization == "int8":
        round_inputs = smooth.int8_inputs
    elif recipe.quantization == "fp8":
        round_inputs = _fp8_inputs
        if recipe.activations == "static":
            input_scale = tensor_scale(x_TK, FP8, recipe.observer)
            round_inputs = _static_fp8(input_scale)
            stored |= {f"{m}.input_scale": input_scale.view(1).clone() for m in PRODUCTS[product]}
    weights = [layer.tensors[f"{module}.weight"] for module in PRODUCTS[product]]
    scales = [_scales(weight, recipe, grid, importance).to(dtype).float() for weight in weights]
    if recipe.quantization == "int4-weight-only" and recipe.compensate:
        q_of_all = gptq.compensate(torch.cat(weights), torch.cat(scales), gptq.hessian(x_TK), grid)
        quantised = list(torch.split(q_of_all, [len(weight) for weight in weights]))
    else:
        quantised = [encode(weight, scale, grid) for weight, scale in zip(weights, scales, strict=True)]
    for module, q, scale in zip(PRODUCTS[product], quantised, scales, strict=True):
        rounded.append((q.float().reshape(len(q), scale.shape[1], -1) * scale[..., None]).flatten(1))
        stored |= {f"{module}.{n}": t for n, t in _checkpoint_tensors(q, scale, recipe, grid, dtype).items()}
    return torch.cat(rounded), stored, round_inputs


def _scales(weight_NK: torch.Tensor, recipe: Recipe, grid: Grid, importance_K: torch.Tensor) -> torch.Tensor:
    if recipe.quantization == "fp8" and recipe.granularity == "tensor":
        return tensor_scale(weight_NK, grid, recipe.observer).view(1, 1).expand(len(weight_NK), 1)
    group = group_size_for(weight_NK.shape[1], recipe.group_size) if grid is INT4 else None
    return weight_scales(weight_NK, grid, recipe.observer, group_size=group, importance_K=importance_K)


def _static_fp8(scale: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: FP8.to_grid(x / scale) * scale


def _checkpoint_tensors(
    q_NK: torch.Tensor, scale_NG: torch.Tensor, recipe: Recipe, grid: Grid, dtype: torch.dtype
) -> Tensors:
    scale = scale_NG.to(dtype).contiguous()
    if recipe.quantization in ("int8", "fp8"):
        per_tensor = recipe.granularity == "tensor"
        return {"weight": q_NK.to(grid.dtype), "weight_scale": scale[0].clone() if per_tensor else scale}
    return {
        "weight_packed": pack_rows(q_NK, grid.bits),
        "weight_scale": scale,
        "weight_shape": torch.tensor(q_NK.shape, dtype=torch.int64),
    }
