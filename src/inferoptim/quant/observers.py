"""Observers: which scale a set of values gets. All symmetric: ``scale = clip / high`` for a clipping point `clip`.

`max` clips nothing. `percentile` clips what lies beyond a quantile of the magnitudes. `mse` tries clipping points and
keeps the one with the least squared error, so that a few outliers do not spend the grid's resolution.

Legend: N output features · K input features · G groups.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch

from inferoptim.quant.grid import Grid, grouped, safe

ObserverName = Literal["max", "percentile", "mse"]
OBSERVERS: tuple[ObserverName, ...] = get_args(ObserverName)
PERCENTILE = 0.9995
# The largest magnitude, times these, meets the end of the grid. Below 1 it is clipped: an integer grid of 8 bits wastes little
# on outliers, one of 4 bits much. A floating-point grid wastes nothing; a scale only says where between two powers of 2 the
# values lie, so one octave holds all there is to choose from, without clipping.
_SHRINKS = {
    "int8": (1.0, 0.97, 0.94, 0.9, 0.85, 0.75),
    "int4": tuple(1.0 - 0.04 * i for i in range(13)),
    "fp8": tuple(2 ** (i / 12) for i in range(12)),
}
_ELEMENTS = 1 << 16  # searched together: they stay in the cache from one scale to the next
_QUANTILE_SAMPLE = 1 << 22  # torch.quantile takes at most 2^24 values


def weight_scales(
    weight_NK: torch.Tensor,
    grid: Grid,
    observer: ObserverName,
    *,
    group_size: int | None = None,
    importance_K: torch.Tensor | None = None,
) -> torch.Tensor:
    """One scale for each output channel and group of input channels.

    Args:
        group_size: divides K; None = one group a channel.
        importance_K: for `mse`, the weight of each input channel's error (its inputs' mean square); None = equal.

    Returns:
        float32 [N, G]; 0 for a group of zeros.
    """
    groups = grouped(weight_NK.float(), group_size)
    top = groups.abs().amax(-1)
    if observer == "max":
        return top / grid.high
    if observer == "percentile":
        return torch.quantile(groups.abs(), PERCENTILE, dim=-1) / grid.high
    importance = None if importance_K is None else grouped(importance_K.float()[None], group_size)
    rows = max(1, _ELEMENTS // weight_NK.shape[1])
    starts = range(0, len(groups), rows)
    return torch.cat([_least_error(groups[row : row + rows], grid, importance) for row in starts])


def _least_error(groups_NGK: torch.Tensor, grid: Grid, importance_GK: torch.Tensor | None) -> torch.Tensor:
    """[N, G]: of the scales tried, the one that leaves the least squared error, weighted by `importance_GK`."""
    top = groups_NGK.abs().amax(-1)
    best, least = top / grid.high, torch.full_like(top, torch.inf)
    for shrink in _SHRINKS[grid.name]:
        scale = (top * shrink / grid.high)[..., None]
        off = (grid.to_grid(groups_NGK / safe(scale)) * scale - groups_NGK).square()
        error = (off if importance_GK is None else off * importance_GK).sum(-1)
        better = error < least
        best, least = torch.where(better, scale[..., 0], best), torch.where(better, error, least)
    return best


def affine_scales(
    weight_NK: torch.Tensor,
    grid: Grid,
    observer: ObserverName,
    *,
    group_size: int,
    importance_K: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A scale and a whole zero point for each group: ``w ~= (q - zero) * scale``, for groups that lie to one side of 0.

    Returns:
        (scale float32 [N, G], 0 for a group of zeros; zero float32 [N, G], a grid value).
    """
    groups = grouped(weight_NK.float(), group_size)
    low, high = groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)
    importance = 1.0 if importance_K is None else grouped(importance_K.float()[None], group_size)
    best_scale = best_zero = torch.zeros_like(low)
    least = torch.full_like(low, torch.inf)
    for shrink in (1.0,) if observer == "max" else _SHRINKS[grid.name]:
        scale = (high - low) * shrink / (grid.high - grid.low)
        zero = (grid.low - low * shrink / safe(scale)).round().clamp(grid.low, grid.high)
        q = grid.to_grid(groups / safe(scale)[..., None] + zero[..., None])
        off = ((q - zero[..., None]) * scale[..., None] - groups).square()
        error = (off * importance).sum(-1)
        better = error < least
        best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
        least = torch.where(better, error, least)
    return best_scale, best_zero


def tensor_scale(x: torch.Tensor, grid: Grid, observer: ObserverName) -> torch.Tensor:
    """One scale for all values of `x` (static activations, a KV-cache head, a per-tensor weight).

    Returns:
        float32 scalar; 0 when every value is 0.
    """
    magnitude = x.float().abs().flatten()
    top = magnitude.max()
    if observer == "max" or top == 0:
        return top / grid.high
    if observer == "percentile":
        step = -(-magnitude.numel() // _QUANTILE_SAMPLE)
        return torch.quantile(magnitude[::step], PERCENTILE) / grid.high
    step = -(-magnitude.numel() // (1 << 18))
    sample = torch.cat((magnitude[::step], top[None]))
    best, least = top / grid.high, torch.tensor(torch.inf)
    for shrink in _SHRINKS[grid.name]:
        scale = top * shrink / grid.high
        error = (grid.to_grid(sample / scale) * scale - sample).square().sum()
        if error < least:
            best, least = scale, error
    return best
