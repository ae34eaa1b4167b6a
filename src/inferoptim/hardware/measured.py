"""What a measurement of a device gives, and the two things that every way of measuring needs."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any


@dataclass(frozen=True)
class MachineCeilings:
    """What this device reached. An empty mapping or None: not measured."""

    device: str  # the CPU's or the GPU's name
    reads_bytes_per_s: dict[str, float] = field(default_factory=dict)  # from memory, by method
    stream_buffer_bytes: int | None = None  # size of the buffer that was streamed
    cached_read_bytes_per_s: float | None = None  # from the last-level cache
    cached_buffer_bytes: int | None = None
    llc_bytes: int | None = None
    gemm_flops_per_s: dict[str, float] = field(default_factory=dict)  # float32, bfloat16, int8, fp8
    num_threads: int | None = None  # CPU only
    torch_version: str = ""
    others_busy: float | None = None  # share of the CPU that other processes used meanwhile
    measured_at: str = ""
    took_s: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def memory_read_bytes_per_s(self) -> float | None:
        """The best streaming read, whatever the method."""
        return max(self.reads_bytes_per_s.values(), default=None)

    def read_ceiling(self, weight_bytes: int | None = None) -> float | None:
        """The read rate that cannot be beaten when `weight_bytes` are read over and over.

        Weights that fit the last-level cache may be served from it: the larger of the two rates then binds.
        """
        rates = [self.memory_read_bytes_per_s]
        if weight_bytes is not None and self.llc_bytes is not None and weight_bytes <= self.llc_bytes:
            rates.append(self.cached_read_bytes_per_s)
        return max((rate for rate in rates if rate is not None), default=None)

    def as_record_fields(self, weight_bytes: int | None = None) -> dict[str, Any]:
        """The fields of `records.schema.Ceilings`."""
        return {
            "memory_read_bytes_per_s": self.read_ceiling(weight_bytes),
            "gemm_flops_per_s": dict(self.gemm_flops_per_s),
            "num_threads": self.num_threads,
            "measured_at": self.measured_at or None,
        }


def cache_folder() -> Path:
    """Where measurements live: ``$INFEROPTIM_HOME/ceilings``, else ``~/.cache/inferoptim/ceilings``."""
    home = os.environ.get("INFEROPTIM_HOME")
    return (Path(home).expanduser() if home else Path.home() / ".cache" / "inferoptim") / "ceilings"


def best_rate(run: Callable[[], object], work: float, budget_s: float) -> float:
    """Work per second of the fastest of several repeats of `run` (at least two, after one warm-up)."""
    run()
    best, repeats, started = float("inf"), 0, perf_counter()
    while repeats < 2 or perf_counter() - started < budget_s:
        before = perf_counter()
        run()
        best = min(best, perf_counter() - before)
        repeats += 1
    return work / best
