"""How kernels are launched on this device."""

from __future__ import annotations

from collections.abc import Callable
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
note_job: Callable[[str, Callable[[], None]], None] | None = (
    None  # meanwhile: takes a kernel's name and compiles it
)


def capability(device: torch.device) -> tuple[int, int] | None:
    """A device's compute capability, or that of the one that "meta" stands for; None for a CPU."""
    if device.type == "cuda":
        return _capability(device.index or 0)
    return compiling_for if device.type == "meta" else None


@cache
def _capability(device_index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device_index)


def options(device: torch.device) -> dict[str, Any]:
    """Keyword arguments of every launch: the kernels' PDL switch, and Triton's own.

    On a CPU (Triton's interpreter, in tests) there is nothing to switch.
    """
    if (found := capability(device)) is None:
        return {"PDL": False}
    pdl = found >= (9, 0)  # programmatic dependent launch
    return {"PDL": pdl, "launch_pdl": pdl}


def next_power_of_2(n: int) -> int:
    """The smallest power of 2 that is not under `n` >= 1."""
    return 1 << (n - 1).bit_length()
