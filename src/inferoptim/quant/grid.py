"""The values that an 8-bit or 4-bit element can take, and rounding onto them.

Legend: N output features · K input features · G groups of input features that share a scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

GridName = Literal["int8", "int4", "fp8"]


@dataclass(frozen=True, slots=True)
class Grid:
    """A symmetric set of values: ``x ~= q * scale`` with q in [low, high]."""

    name: GridName
    low: float
    high: float
    bits: int
    dtype: torch.dtype  # that holds one element (int4: one element in an int8, before packing)

    def to_grid(self, ratio: torch.Tensor) -> torch.Tensor:
        """Nearest grid value of each `x / scale`, in float32."""
        if self.dtype == torch.float8_e4m3fn:
            return ratio.clamp(self.low, self.high).to(self.dtype).float()
        return ratio.round().clamp(self.low, self.high)


INT8 = Grid("int8", -127.0, 127.0, 8, torch.int8)
INT4 = Grid("int4", -8.0, 7.0, 4, torch.int8)
FP8 = Grid("fp8", -448.0, 448.0, 8, torch.float8_e4m3fn)
GRIDS: dict[str, Grid] = {grid.name: grid for grid in (INT8, INT4, FP8)}


def safe(scale: torch.Tensor) -> torch.Tensor:
    """`scale` with its zeros (all-zero rows) made 1, so that one may divide by it."""
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def grouped(weight_NK: torch.Tensor, group_size: int | None) -> torch.Tensor:
    """[N, G, K / G]: a view by groups; None = one group a row."""
    return weight_NK.reshape(len(weight_NK), -1, group_size or weight_NK.shape[-1])


def round_trip(weight_NK: torch.Tensor, scale_NG: torch.Tensor, grid: Grid) -> torch.Tensor:
    """What is left of the weight after quantisation with these scales, float32 [N, K]."""
    groups = grouped(weight_NK.float(), weight_NK.shape[-1] // scale_NG.shape[-1])
    return (grid.to_grid(groups / safe(scale_NG)[..., None]) * scale_NG[..., None]).flatten(-2)


def encode(
    weight_NK: torch.Tensor, scale_NG: torch.Tensor, grid: Grid, zero_NG: torch.Tensor | None = None
) -> torch.Tensor:
    """Grid values of the weight, in `grid.dtype`, [N, K]; `zero_NG` are the values that stand for 0, where 0 does not."""
    groups = grouped(weight_NK.float(), weight_NK.shape[-1] // scale_NG.shape[-1])
    ratio = groups / safe(scale_NG)[..., None]
    if zero_NG is not None:
        ratio = ratio + zero_NG[..., None]
    return grid.to_grid(ratio).to(grid.dtype).flatten(-2).contiguous()
