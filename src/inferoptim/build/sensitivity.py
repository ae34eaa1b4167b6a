"""Which products suffer most from quantisation: what each one, quantised alone, would do to the model's predictions.

A small error δ of a product's outputs changes the predicted distribution by ``KL ≈ ½ E[(g · δ)²]``, g the gradient of the
log-probability of a token drawn from the model's own prediction (the Fisher information is KL's second derivative). One
pass forward and one back give that for every product, in nats; what two products add is nearly the sum. Errors at different
positions are taken as independent: where attention adds up equal ones (qkv), the estimate is low.

Legend: B sequences · L tokens of each · T = B * L · H hidden size · K inputs, N outputs of a product · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from inferoptim.build.artefact import ProductSensitivity, TradeOff
from inferoptim.build.products import product
from inferoptim.build.quantise import LayerWork
from inferoptim.build.recipe import Recipe
from inferoptim.build.source import SourceModel
from inferoptim.kernels import stock

_SEQUENCES = 4  # of the calibration set: enough to rank products
_ROWS = 64  # distributions held at a time
_SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """One product of one layer, rounded to nearest: error compensation has still to come.

    Attributes:
        kl: what its quantisation alone adds to KL, nats a token; `inputs_kl`, `weights_kl`: with only these rounded.
        elements: of its weight.
    """

    layer: int
    product: str
    kl: float
    inputs_kl: float
    weights_kl: float
    elements: int

    def part(self) -> ProductSensitivity:
        """As the artefact records it, six significant digits."""
        kl, inputs, weights = (float(f"{x:.6g}") for x in (self.kl, self.inputs_kl, self.weights_kl))
        return ProductSensitivity(kl_nats=kl, inputs_kl_nats=inputs, weights_kl_nats=weights)


def measure(
    source: SourceModel,
    recipe: Recipe,
    dtype: torch.dtype,
    tokens_BL: torch.Tensor,
    progress: Progress | None = None,
) -> list[Sensitivity]:
    """Each product of each layer, on the exact inputs of the first calibration sequences."""
    recipe = recipe.model_copy(update={"compensate": False, "keep_share": None, "keep_above": None})
    count = source.spec.num_layers
    entering = [source.embed(tokens_BL[:_SEQUENCES])]
    for index in range(count):
        if progress:
            progress("measuring sensitivity", index, 2 * count)
        layer = source.layer(index)
        entering.append(source.run_recorded(layer, entering[-1])[0])
    gradient = _gradient_of_choice(source, entering.pop())
    found: list[Sensitivity] = []
    for index in reversed(range(count)):
        if progress:
            progress("measuring sensitivity", 2 * count - 1 - index, 2 * count)
        layer, x = source.layer(index), entering.pop()
        work = LayerWork(layer, recipe, dtype, None)  # smoothing rewrites the layer, not what it computes
        source.run(layer, x, work.product)
        gradient, seen = source.gradients(layer, x, gradient)
        for name, (x_BLK, g_BLN) in seen.items():
            weight = layer.weight(name)
            rounded, round_inputs = work.simulated[name]
            coarse_BLK = round_inputs(x_BLK)
            # g · δ, without δ: g @ W meets the inputs' error, g @ (W' - W) the inputs
            of_inputs = (product(g_BLN, weight.T) * (coarse_BLK - x_BLK)).sum(-1)
            by_weight_BLK = product(g_BLN, (rounded - weight).T)
            of_weights = (by_weight_BLK * x_BLK).sum(-1)
            both = of_inputs + (by_weight_BLK * coarse_BLK).sum(-1)
            found.append(Sensitivity(index, name, _kl(both), _kl(of_inputs), _kl(of_weights), weight.numel()))
    return sorted(found, key=lambda s: s.layer)


def _kl(change_BL: torch.Tensor) -> float:
    """From the changes of the drawn tokens' log-probabilities."""
    return float(change_BL.square().mean() / 2)


def _gradient_of_choice(source: SourceModel, x_BLH: torch.Tensor) -> torch.Tensor:
    """Gradient with respect to the last layer's output of the log-probability of tokens drawn from the prediction, summed."""
    head_VH = source.head().float()
    generator = torch.Generator().manual_seed(0)
    norm = source.tensor("model.norm.weight").float()
    with torch.enable_grad():
        x = x_BLH.detach().requires_grad_()
        h_TH = stock.rms_norm(x, norm, source.spec.rms_norm_eps).flatten(0, 1)
    gradient_TH = torch.empty_like(h_TH)
    for first in range(0, len(h_TH), _ROWS):
        rows = slice(first, first + _ROWS)
        p = (h_TH[rows].detach() @ head_VH.T).softmax(-1)
        drawn = torch.multinomial(p, 1, generator=generator)[:, 0]
        gradient_TH[rows] = head_VH[drawn] - p @ head_VH
    (gradient,) = torch.autograd.grad(h_TH, x, gradient_TH)
    return gradient


def most_sensitive(found: Sequence[Sensitivity], share: float) -> frozenset[tuple[int, str]]:
    """(layer, product) of those to leave in high precision: most KL removed for each element, up to `share` of all."""
    room = share * sum(s.elements for s in found)
    kept: set[tuple[int, str]] = set()
    for s in sorted(found, key=lambda s: s.kl / s.elements, reverse=True):
        if s.elements <= room:
            kept.add((s.layer, s.product))
            room -= s.elements
    return frozenset(kept)


def estimated(found: Sequence[Sensitivity]) -> tuple[TradeOff, ...]:
    """The trade-off by the estimates alone."""
    rows = []
    for share in _SHARES if found else ():
        kept = most_sensitive(found, share)
        left = sum(s.kl for s in found if (s.layer, s.product) not in kept)
        rows.append(TradeOff(share=share, products=len(kept), kl_nats_left=float(f"{left:.6g}")))
    return tuple(rows)
