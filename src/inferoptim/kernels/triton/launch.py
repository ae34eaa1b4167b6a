"""How kernels are launched on this device."""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol

import torch


class CacheLayer(Protocol):
    """One layer's cache as the kernels see it (`models.batch.KVLayer`)."""

    @property
    def k(self) -> torch.Tensor: ...  # [B, P, Hkv, D]
    @property
    def v(self) -> torch.Tensor: ...  # same
    @property
    def k_scale(self) -> torch.Tensor | None: ...  # float32 [B, P, Hkv], of a quantised cache
    @property
    def v_scale(self) -> torch.Tensor | None: ...


compiling_for: tuple[int, int] | None = None  # capability of the device that "meta" tensors stand for


@cache
def has_pdl(device_index: int) -> bool:
    """Whether the device has programmatic dependent launch."""
    return torch.cuda.get_device_capability(device_index) >= (9, 0)


def options(device: torch.device) -> dict[str, Any]:
    """Keyword arguments of every launch: the kernels' PDL switch, and Triton's own.

    On a CPU (Triton's interpreter, in tests) there is nothing to switch.
    """
    if device.type == "meta" and compiling_for is not None:
        pdl = compiling_for >= (9, 0)
    elif device.type == "cuda":
        pdl = has_pdl(device.index or 0)
    else:
        return {"PDL": False}
    return {"PDL": pdl, "launch_pdl": pdl}


def next_power_of_2(n: int) -> int:
    """The smallest power of 2 that is not under `n` >= 1."""
    return 1 << (n - 1).bit_length()
