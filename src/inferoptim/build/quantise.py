"""One layer quantised: smoothed, scaled, rounded, with the error of each product on the calibration inputs.

Legend: B sequences · L tokens of each · T = B * L · H hidden size · K input features · N output features · G groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from inferoptim.build.products import product, served_int8_inputs
from inferoptim.build.recipe import Recipe
from inferoptim.build.source import PRODUCTS, Layer, SourceModel
from inferoptim.kernels import stock
from inferoptim.kernels.reference import quantize_kv
from inferoptim.quant import gptq, smooth
from inferoptim.quant.grid import FP8, INT4, INT8, Grid, encode
from inferoptim.quant.observers import affine_scales, tensor_scale, weight_scales
from inferoptim.quant.packing import pack_rows

_GRID = {"fp8": FP8, "int8": INT8, "int8-weight-only": INT8, "int4-weight-only": INT4}
_NORM_BEFORE = {"qkv": "input_layernorm.weight", "gate_up": "post_attention_layernorm.weight"}
_EVERY = 8  # one calibration token in so many is enough to state a product's error
Tensors = dict[str, torch.Tensor]
Rounding = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class ProductReport:
    """How one product of one layer fared."""

    layer: int
    product: str  # qkv, o, gate_up or down
    error: float  # ‖quantised − unrounded‖ / ‖unrounded‖ of its output on the calibration inputs
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

    index: int
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
    keep: frozenset[tuple[int, str]] = frozenset(),
    *,
    undecided: bool = False,
) -> tuple[QuantisedLayer, LayerWork, torch.Tensor, torch.Tensor]:
    """Quantise one layer, product after product, on the inputs that the quantised products before it give.

    Args:
        layer: float32 tensors; rewritten by smoothing.
        dtype: of what stays dense, and of the scales, so that other engines read the same values.
        x_exact_BLH: input of the layer in the original model.
        x_BLH: input in the model quantised so far.
        keep: (layer, product) of those to leave in the model's type.
        undecided: `keep` is a guess: what follows a product of it gets exact inputs, but it is quantised and returned as such.

    Returns:
        (the layer, how it was quantised, the next layer's exact input, its input in the quantised model).
    """
    next_exact, inputs = source.run_recorded(layer, x_exact_BLH)
    work = LayerWork(layer, recipe, dtype, inputs, keep, undecided=undecided)
    next_x = source.run(layer, x_BLH, work.product, work.observe_kv)
    tensors = work.tensors
    tensors |= {n: t.to(dtype) for n, t in layer.tensors.items() if n.endswith(".bias") or "norm" in n}
    drift = float((next_x - next_exact).norm() / next_exact.norm().clamp_min(1e-12))
    return QuantisedLayer(layer.index, tensors, work.reports, drift), work, next_exact, next_x


class LayerWork:
    """A layer being quantised while its quantised self runs: `product` is called in the order of the forward pass.

    Attributes:
        layer: as smoothing left it.
        tensors: as the checkpoint will hold them.
        reports: one a product.
        simulated: product → (what is left of its weight, the rounding of its inputs).
    """

    def __init__(
        self,
        layer: Layer,
        recipe: Recipe,
        dtype: torch.dtype,
        exact: Tensors | None,
        keep: frozenset[tuple[int, str]] = frozenset(),
        *,
        undecided: bool = False,
    ) -> None:
        """Args: exact: inputs of each product in the original model; consumed. None without error compensation."""
        self.layer, self._recipe, self._dtype, self._exact, self._keep = layer, recipe, dtype, exact, keep
        self._undecided = undecided
        self._down: tuple[torch.Tensor, float] | None = None
        self.simulated: dict[str, tuple[torch.Tensor, Rounding]] = {}
        self.tensors: Tensors = {}
        self.reports: list[ProductReport] = []

    def observe_kv(self, k: torch.Tensor, v: torch.Tensor) -> None:
        """Scales of the cached keys and values."""
        if self._recipe.kv_cache_dtype == "auto":
            return
        grid = FP8 if self._recipe.kv_cache_dtype == "fp8" else INT8
        for name, values in (("self_attn.k_scale", k), ("self_attn.v_scale", v)):
            self.tensors[name] = tensor_scale(values, grid, self._recipe.observer).to(torch.float32).view(1)

    def product(self, name: str, x_BLK: torch.Tensor) -> torch.Tensor:
        """Quantise the product on these inputs; returns what it then gives."""
        layer, recipe, dtype = self.layer, self._recipe, self._dtype
        x = x_BLK.flatten(0, -2)
        exact = x if self._exact is None else self._exact.pop(name)
        x, exact, alpha = self._smoothed(name, x, exact)
        aim, rounded, stored, round_inputs = _quantise_product(layer, name, x, exact, recipe, dtype)
        reference = x[::_EVERY] @ aim.T
        got = product(round_inputs(x), rounded)
        error = float((got[::_EVERY] - reference).norm() / reference.norm().clamp_min(1e-12))
        kept = (layer.index, name) in self._keep
        kept |= recipe.keep_above is not None and error > recipe.keep_above
        as_served = served_int8_inputs if recipe.quantization == "int8" else round_inputs
        self.simulated[name] = (rounded, as_served)
        if kept or recipe.quantization == "none":
            dense = layer.weight(name).to(dtype).float()
            got = product(x, dense)
            if not self._undecided:
                stored = {f"{m}.weight": layer.tensors[f"{m}.weight"].to(dtype) for m in PRODUCTS[name]}
                self.simulated[name] = (dense, _as_is)
        self.tensors |= stored
        self.reports.append(ProductReport(layer.index, name, error, kept, alpha))
        return got.view(*x_BLK.shape[:-1], -1)

    def _smoothed(
        self, name: str, x: torch.Tensor, exact: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, float | None]:
        """The inputs divided by factors that the layer's tensors take up, and the exponent; as they were without smoothing."""
        if not (self._recipe.quantization == "int8" and self._recipe.smooth):
            return x, exact, None
        if name == "down":  # divided by the rows of up already
            assert self._down is not None
            s, alpha = self._down
            return x, exact / s, alpha
        if name == "o":
            return x, exact, None
        s, alpha = self._smooth_after_norm(name, x)
        x, exact = x / s, exact / s
        if name == "gate_up":  # down's factors change the rows of up: they are found before up is rounded
            self._down = self._smooth_down(stock.silu_mul(x @ self.layer.weight("gate_up").T))
        return x, exact, alpha

    def _smooth_after_norm(self, product: str, x_TK: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Fold factors into the norm before a product and into the product's weight.

        The norm is rounded to the model's type first and the weight takes what it really divides by: folding is exact.
        """
        layer = self.layer
        weight, norm = layer.weight(product), layer.tensors[_NORM_BEFORE[product]]
        s, alpha = smooth.best_factors(x_TK, weight, INT8, smooth.int8_inputs)
        divided = (norm / s).to(self._dtype).float()
        s = torch.where(divided == 0, torch.ones_like(s), norm / divided)
        layer.tensors[_NORM_BEFORE[product]] = torch.where(divided == 0, norm, divided)
        layer.set_weight(product, weight * s)
        return s, alpha

    def _smooth_down(self, x_TK: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Fold factors into the rows of up and the columns of down."""
        weight = self.layer.weight("down")
        s, alpha = smooth.best_factors(x_TK, weight, INT8, smooth.int8_inputs)
        self.layer.tensors["mlp.up_proj.weight"] = self.layer.tensors["mlp.up_proj.weight"] / s[:, None]
        self.layer.set_weight("down", weight * s)
        return s, alpha


def _as_is(x: torch.Tensor) -> torch.Tensor:
    return x


def _fp8_inputs(x: torch.Tensor) -> torch.Tensor:
    q, scale = quantize_kv(x, torch.float8_e4m3fn)
    return q.float() * scale[..., None]


def _quantise_product(
    layer: Layer,
    product: str,
    x_TK: torch.Tensor,
    exact_TK: torch.Tensor,
    recipe: Recipe,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, Tensors, Rounding]:
    """(the weight [N, K] to be rounded, what is left of it, its tensors in the checkpoint, the rounding of its inputs)."""
    if recipe.quantization == "none":
        weight = layer.weight(product)
        return weight, weight.to(dtype).float(), {}, _as_is
    grid = _GRID[recipe.quantization]
    stored: Tensors = {}
    rounded: list[torch.Tensor] = []
    round_inputs: Rounding = _as_is
    if recipe.quantization == "int8":
        round_inputs = smooth.int8_inputs
    elif recipe.quantization == "fp8":
        round_inputs = _fp8_inputs
        if recipe.activations == "static":
            input_scale = tensor_scale(x_TK, FP8, recipe.observer)
            round_inputs = _static_fp8(input_scale)
            stored |= {f"{m}.input_scale": input_scale.view(1).clone() for m in PRODUCTS[product]}
    weights = [layer.tensors[f"{module}.weight"] for module in PRODUCTS[product]]
    x = round_inputs(x_TK)
    importance = x.square().mean(0)
    by = gptq.compensation(x, exact_TK) if recipe.compensate else None
    if by is not None:
        weights = [by.moved(weight) for weight in weights]
    pairs = [_scales(weight, recipe, grid, importance) for weight in weights]
    scales = [scale.to(dtype).float() for scale, _ in pairs]
    zeros = [zero for _, zero in pairs if zero is not None]
    if by is not None:
        all_zeros = torch.cat(zeros) if zeros else None
        q_of_all = gptq.compensate(torch.cat(weights), torch.cat(scales), by, grid, all_zeros)
        quantised = list(torch.split(q_of_all, [len(weight) for weight in weights]))
    else:
        quantised = [
            encode(weight, scale, grid, zero)
            for weight, scale, (_, zero) in zip(weights, scales, pairs, strict=True)
        ]
    for module, q, scale, (_, zero) in zip(PRODUCTS[product], quantised, scales, pairs, strict=True):
        steps = q.float().reshape(len(q), scale.shape[1], -1)
        steps = steps if zero is None else steps - zero[..., None]
        rounded.append((steps * scale[..., None]).flatten(1))
        tensors = _checkpoint_tensors(q, scale, zero, recipe, grid, dtype)
        stored |= {f"{module}.{n}": t for n, t in tensors.items()}
    return torch.cat(weights), torch.cat(rounded), stored, round_inputs


def _scales(
    weight_NK: torch.Tensor, recipe: Recipe, grid: Grid, importance_K: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(scales [N, G], zero points [N, G] where the recipe has them)."""
    if recipe.quantization == "fp8" and recipe.granularity == "tensor":
        return tensor_scale(weight_NK, grid, recipe.observer).view(1, 1).expand(len(weight_NK), 1), None
    group = group_size_for(weight_NK.shape[1], recipe.group_size) if grid is INT4 else None
    if group is not None and not recipe.symmetric:
        return affine_scales(weight_NK, grid, recipe.observer, group_size=group, importance_K=importance_K)
    scale = weight_scales(weight_NK, grid, recipe.observer, group_size=group, importance_K=importance_K)
    return scale, None


def _static_fp8(scale: torch.Tensor) -> Rounding:
    return lambda x: FP8.to_grid(x / scale) * scale


def _checkpoint_tensors(
    q_NK: torch.Tensor,
    scale_NG: torch.Tensor,
    zero_NG: torch.Tensor | None,
    recipe: Recipe,
    grid: Grid,
    dtype: torch.dtype,
) -> Tensors:
    scale = scale_NG.to(dtype).contiguous()
    if recipe.quantization in ("int8", "fp8"):
        per_tensor = recipe.granularity == "tensor"
        return {"weight": q_NK.to(grid.dtype), "weight_scale": scale[0].clone() if per_tensor else scale}
    zeros = {} if zero_NG is None else {"weight_zero_point": pack_rows(zero_NG.T, grid.bits).T.contiguous()}
    return {
        "weight_packed": pack_rows(q_NK, grid.bits),
        "weight_scale": scale,
        "weight_shape": torch.tensor(q_NK.shape, dtype=torch.int64),
        **zeros,
    }
