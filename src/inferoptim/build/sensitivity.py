"""Which products suffer most from quantisation: each one quantised alone, judged by what it does to the residual stream.

Legend: B sequences · L tokens of each · H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from inferoptim.build.artefact import TradeOff
from inferoptim.build.quantise import LayerWork, Rounding
from inferoptim.build.recipe import Recipe
from inferoptim.build.source import PRODUCTS, Layer, Product, SourceModel

_SEQUENCES = 4  # of the calibration set: enough to rank products
SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3)
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """One product of one layer.

    Attributes:
        drift: root mean square over tokens of ‖x_quantised − x‖ / ‖x‖ of the residual stream after the layer, nothing but
            this product quantised (rounded to nearest, so that error compensation has still to come).
        elements: of its weight.
    """

    layer: int
    product: str
    drift: float
    elements: int


def measure(
    source: SourceModel,
    recipe: Recipe,
    dtype: torch.dtype,
    tokens_BL: torch.Tensor,
    progress: Progress | None = None,
) -> list[Sensitivity]:
    """Each product of each layer, on the exact inputs of the first calibration sequences."""
    plain = recipe.model_copy(update={"compensate": False, "keep_share": None, "keep_above": None})
    x = source.embed(tokens_BL[:_SEQUENCES])
    found: list[Sensitivity] = []
    for index in range(source.spec.num_layers):
        if progress:
            progress("measuring sensitivity", index, source.spec.num_layers)
        layer = source.layer(index)
        after, inputs = source.run_recorded(layer, x)
        work = LayerWork(layer, plain, dtype, inputs)  # smoothing rewrites the layer, not what it computes
        source.run(layer, x, work.product)
        for name in PRODUCTS:
            alone = source.run(layer, x, _only(name, layer, *work.simulated[name]))
            ratio = (alone - after).square().sum(-1) / after.square().sum(-1).clamp_min(1e-12)
            found.append(Sensitivity(index, name, float(ratio.mean().sqrt()), layer.weight(name).numel()))
        x = after
    return found


def _only(name: str, layer: Layer, rounded: torch.Tensor, round_inputs: Rounding) -> Product:
    """The layer's own products, but for one."""
    return lambda n, x: F.linear(round_inputs(x), rounded) if n == name else F.linear(x, layer.weight(n))


def most_sensitive(found: Sequence[Sensitivity], share: float) -> frozenset[tuple[int, str]]:
    """(layer, product) of those to leave in high precision: most drift removed for each element, up to `share` of all."""
    room = share * sum(s.elements for s in found)
    kept: set[tuple[int, str]] = set()
    for s in sorted(found, key=lambda s: s.drift**2 / s.elements, reverse=True):
        if s.elements <= room:
            kept.add((s.layer, s.product))
            room -= s.elements
    return frozenset(kept)


def trade_off(found: Sequence[Sensitivity]) -> tuple[TradeOff, ...]:
    """One row for each of `SHARES`."""
    total = sum(s.drift**2 for s in found)
    rows = []
    for share in SHARES if total else ():
        kept = most_sensitive(found, share)
        left = sum(s.drift**2 for s in found if (s.layer, s.product) not in kept)
        rows.append(
            TradeOff(share=share, products=len(kept), squared_drift_left=float(f"{left / total:.6g}"))
        )
    return tuple(rows)
