"""Random inputs of the checks, and how an output is compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from inferoptim.kernels import reference

Comparison = tuple[str, torch.Tensor, torch.Tensor, float]  # name, output, reference, largest error
Check = Callable[["Inputs"], Iterator[Comparison]]
EPS = 1e-5


@dataclass(frozen=True, slots=True)
class Cache:
    """One layer's cache, as the kernels take it."""

    k: torch.Tensor
    v: torch.Tensor
    k_scale: torch.Tensor | None = None
    v_scale: torch.Tensor | None = None

    def copy(self) -> Cache:
        scales = (None if s is None else s.clone() for s in (self.k_scale, self.v_scale))
        return Cache(self.k.clone(), self.v.clone(), *scales)


class Inputs:
    """Random tensors on one device, in one type; `limit` is what rounding to that type allows."""

    def __init__(self, device: torch.device, dtype: torch.dtype, seed: int, small: bool) -> None:
        self.device, self.dtype, self.small = device, dtype, small
        self.limit = 1e-2 if dtype == torch.bfloat16 else 2e-3
        self.rounding = (
            1e-1 if small else 5e-2
        )  # of 8-bit values; the interpreter cuts float8 where devices round
        self._rng = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> torch.Tensor:
        x = torch.randn(shape, generator=self._rng) * scale
        return x.to(device=self.device, dtype=dtype or self.dtype)

    def poison(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        kind = dtype or self.dtype
        if kind.is_floating_point and kind.itemsize > 1:
            return torch.full(shape, float("nan"), dtype=kind, device=self.device)
        return torch.full(shape, 77, dtype=torch.float32, device=self.device).to(kind)

    def ints(self, values: Any) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values), dtype=torch.int32, device=self.device)

    def permutation(self, n: int) -> list[int]:
        return list(torch.randperm(n, generator=self._rng).tolist())

    def cache(self, blocks: int, block_size: int, heads: int, dim: int, quant: torch.dtype | None) -> Cache:
        """Filled at random: a slot that a kernel must not read would show."""
        k, v = self.normal(blocks, block_size, heads, dim), self.normal(blocks, block_size, heads, dim)
        if quant is None:
            return Cache(k, v)
        kq, ks = reference.quantize_kv(k, quant)
        vq, vs = reference.quantize_kv(v, quant)
        return Cache(kq, vq, ks, vs)


def relative_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    """||out - expected|| / ||expected||; infinite when `out` holds something that is not finite."""
    a, b = out.double(), expected.double()
    if a.shape != b.shape or not bool(torch.isfinite(a).all()):
        return float("inf")
    return float((a - b).norm() / b.norm().clamp_min(1e-30))


def quants(i: Inputs) -> list[tuple[str, torch.dtype | None]]:
    return [("", None), (" int8", torch.int8), (" fp8", torch.float8_e4m3fn)]


def dequantised(q: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    return q.float() if scale is None else q.float() * scale.float()[..., None]
