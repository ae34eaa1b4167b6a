"""What each share of products left in high precision would give: measured on tokens that calibration did not use, in one pass.

While the layers are quantised one after the other, the held-out tokens go through the model several times over: once as the
source computes it, and once for each choice of products to leave. So a frontier of a few points costs a few forward passes and
no second build, and the layers still stream. Inputs are rounded as this machine's engine does.

Legend: C choices, the last one the source · B sequences · L tokens of each · K inputs, N outputs of a product · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from inferoptim.build.products import product, served_int8_inputs
from inferoptim.build.quantise import Rounding
from inferoptim.build.recipe import Recipe
from inferoptim.build.sensitivity import Sensitivity, most_sensitive
from inferoptim.build.source import Layer, SourceModel
from inferoptim.kernels import stock
from inferoptim.quant.grid import INT8, round_trip
from inferoptim.quant.observers import weight_scales
from inferoptim.records.schema import Interval
from inferoptim.records.statistics import paired_interval

_AROUND = (-0.15, 0.0, 0.1, 0.25)  # shares measured beside 0, from the one that the estimates aim at
_STEP = 0.05
HELD_OUT = 3  # sequences of the calibration texts
_UNIT = 32  # tokens resampled together
_ROWS = 128  # distributions held at a time
_HEAD_ROWS = 4096  # of the head rounded at a time
Kept = frozenset[tuple[int, str]]
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Point:
    """One choice, measured.

    Attributes:
        share: of the linear weights that may be left in the model's type.
        kept: (layer, product) of those left.
        head_rounded: whether the engine rounds the output head when it loads the artefact.
        drifts: by layer, of the residual stream.
    """

    share: float
    kept: Kept
    head_rounded: bool
    kl_nats: Interval
    top1_agreement: Interval
    perplexity_ratio: Interval
    drifts: tuple[float, ...]

    def meets(self, recipe: Recipe) -> bool:
        """Whether the recipe's goal is met."""
        return recipe.max_kl is None or self.kl_nats.value <= recipe.max_kl


def aim(found: Sequence[Sensitivity], recipe: Recipe) -> float:
    """The least share to leave that should meet the recipe's goal, by the estimates of sensitivity."""
    most = recipe.max_kl or np.inf
    for step in range(round(1 / _STEP)):
        kept = most_sensitive(found, step * _STEP)
        if sum(s.kl for s in found if (s.layer, s.product) not in kept) <= most:
            return round(step * _STEP, 2)
    return 1.0


def shares_around(aimed: float) -> list[float]:
    """Shares to measure: none, the one aimed at, and some about it."""
    return sorted({0.0, *(round(min(max(aimed + step, 0.0), 1.0), 2) for step in _AROUND)})


class Frontier:
    """Follows the layers as they are quantised; see the module's docstring.

    Args:
        tokens_BL: held out.
        choices: share → products that it leaves in the model's type.
    """

    def __init__(
        self, source: SourceModel, recipe: Recipe, tokens_BL: torch.Tensor, choices: Mapping[float, Kept]
    ) -> None:
        self._source, self._recipe, self._tokens, self._choices = source, recipe, tokens_BL, dict(choices)
        self._x = source.embed(tokens_BL).repeat(len(choices) + 1, 1, 1)
        self._drifts: list[list[float]] = []

    def may_keep(self, layer: int, product: str) -> bool:
        """Whether any choice leaves this product as it is."""
        return any((layer, product) in kept for kept in self._choices.values())

    def follow(self, layer: Layer, simulated: Mapping[str, tuple[torch.Tensor, Rounding]]) -> None:
        """Run every choice through a layer.

        Args:
            layer: smoothed.
            simulated: product → (what is left of its weight, the rounding of its inputs).
        """
        count = len(self._choices) + 1

        def one(name: str, x: torch.Tensor) -> torch.Tensor:
            rounded, round_inputs = simulated[name]
            left = [(layer.index, name) in kept for kept in self._choices.values()] + [True]
            x_CTK, parts = x.view(count, -1, x.shape[-1]), []
            for exact, several in groupby(
                range(count), left.__getitem__
            ):  # mostly two runs: larger shares keep more
                at = list(several)
                x_TK = x_CTK[at[0] : at[-1] + 1].flatten(0, 1)
                parts.append(
                    product(x_TK, layer.weight(name)) if exact else product(round_inputs(x_TK), rounded)
                )
            return torch.cat(parts).view(*x.shape[:-1], -1)

        self._x = self._source.run(layer, self._x, one)
        x_CBLH = self._x.view(count, -1, *self._x.shape[1:])
        source = x_CBLH[-1]
        self._drifts.append([float((x - source).norm() / source.norm()) for x in x_CBLH[:-1]])

    @torch.no_grad()
    def points(self) -> list[Point]:
        """The choices' distributions beside the source's, with the head as it is and, where the recipe may round it, rounded."""
        source, shares = self._source, list(self._choices)
        norm = source.tensor("model.norm.weight").float()
        h = stock.rms_norm(self._x, norm, source.spec.rms_norm_eps)
        h_CBLH = h.view(len(shares) + 1, -1, *h.shape[1:])
        h_CTH = h_CBLH[:, :, :-1].flatten(1, 2)  # what follows a sequence's last token is not known
        targets_T = self._tokens[:, 1:].flatten()
        head_VH = source.head().float()

        def point(i: int, head_rounded: bool) -> Point:
            h_TH, other_VH = h_CTH[i], head_VH
            if head_rounded:
                other_VH = rounded_VH
                h_TH = served_int8_inputs(h_TH) if self._recipe.quantises_inputs else h_TH
            sums = _sums(h_TH, h_CTH[-1], other_VH, head_VH, targets_T)
            drifts = tuple(layer[i] for layer in self._drifts)
            kept = self._choices[shares[i]]
            return Point(
                shares[i], kept, head_rounded, drifts=drifts, **_intervals(sums, f"{i} {head_rounded}")
            )

        points = [point(i, False) for i in range(len(shares))]
        if self._recipe.rounds_head:
            rounded_VH = torch.empty_like(head_VH)
            for first in range(0, len(head_VH), _HEAD_ROWS):
                rows_VH = head_VH[first : first + _HEAD_ROWS]
                rounded_VH[first : first + _HEAD_ROWS] = round_trip(
                    rows_VH, weight_scales(rows_VH, INT8, "max"), INT8
                )
            # rounding adds loss: where the goal is missed without it there is nothing to see, but for the plain recipe
            points += [point(i, True) for i, seen in enumerate(points) if i == 0 or seen.meets(self._recipe)]
        return points


def _sums(
    h_TH: torch.Tensor,
    exact_TH: torch.Tensor,
    head_VH: torch.Tensor,
    exact_VH: torch.Tensor,
    targets_T: torch.Tensor,
) -> Array:
    """[3, T]: KL(source || other) in nats, 1 where both put the same token first, and the rise of -log p of what came."""
    parts = []
    for first in range(0, len(h_TH), _ROWS):
        rows = slice(first, first + _ROWS)
        # in float32: logits rounded to bfloat16 would differ by as much as good recipes do
        p = F.log_softmax(F.linear(exact_TH[rows], exact_VH), dim=-1)
        q = F.log_softmax(F.linear(h_TH[rows], head_VH), dim=-1)
        same = (p.argmax(-1) == q.argmax(-1)).float()
        rise = (p - q).gather(1, targets_T[rows, None])[:, 0]
        kl = F.kl_div(q, p, reduction="none", log_target=True).sum(-1).clamp_min(0)
        parts.append(torch.stack((kl, same, rise)))
    return torch.cat(parts, dim=1).double().numpy()


def _intervals(sums_3T: Array, key: str) -> dict[str, Interval]:
    starts = np.arange(0, sums_3T.shape[1], _UNIT)
    totals_3U = np.add.reduceat(sums_3T, starts, axis=1)
    counts_U = np.diff(np.append(starts, sums_3T.shape[1])).astype(float)

    def interval(name: str, row: int, most: float = np.inf) -> Interval:
        def mean(weights: Array) -> Array:
            value = weights @ totals_3U[row] / (weights @ counts_U)
            return np.asarray(np.exp(value) if name == "ppl" else value, float)

        found = paired_interval(mean, len(counts_U), f"{key}:{name}")
        return found.model_copy(update={"low": max(found.low, 0.0), "high": min(found.high, most)})

    return {
        "kl_nats": interval("kl", 0),
        "top1_agreement": interval("top1", 1, 1.0),
        "perplexity_ratio": interval("ppl", 2),
    }


def choose(points: Sequence[Point], recipe: Recipe, read_bytes: Sequence[int]) -> tuple[Point, bool]:
    """(the point with the fewest bytes to read a token that meets the recipe's goal, True), or (the nearest to it, False)."""
    good = [
        (size, point.kl_nats.value, i)
        for i, (point, size) in enumerate(zip(points, read_bytes, strict=True))
        if point.meets(recipe)
    ]
    if good:
        return points[min(good)[2]], True
    return min(points, key=lambda point: point.kl_nats.value), False
