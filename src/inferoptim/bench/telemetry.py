"""Background samples of a run: memory, processor, KV-cache, and the GPU's own meters where there is one.

What has no meter stays None. The thread lives in the worker process, beside the target that it watches.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psutil

from inferoptim.hardware.gpu_meter import GpuMeter, GpuReading
from inferoptim.targets.base import KVMeter


@dataclass(slots=True)
class RunTelemetry:
    """What was seen of one run. `samples` are fields of `TelemetrySample`, without the names of the run."""

    samples: list[dict[str, Any]] = field(default_factory=list)
    peak_rss_bytes: int | None = None
    cpu_s: float | None = None
    energy_j: float | None = None


class Sampler:
    """Samples from `start` to `stop`, once at each end too, so that the shortest run has two.

    Args:
        target: asked for its KV usage where it has a meter.
        interval_s: between samples.
        gpu: an open `GpuMeter`, or None.
    """

    def __init__(self, target: object, interval_s: float, gpu: GpuMeter | None) -> None:
        self._meter = target if isinstance(target, KVMeter) else None
        self._interval_s = interval_s
        self._gpu = gpu
        own = psutil.Process()
        # some targets compute in processes of their own (vLLM's engine): they belong to the measurement
        self._processes = [own, *own.children(recursive=True)]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="telemetry", daemon=True)
        self._out = RunTelemetry()
        self._started = 0.0
        self._cpu_before = 0.0
        self._energy_before: float | None = None

    def start(self) -> None:
        """Begin; times are counted from here."""
        self._energy_before = self._gpu.energy_j() if self._gpu else None
        self._cpu_before = self._cpu_time()
        self._cpu_percent()  # the first call only sets its starting point
        self._started = time.perf_counter()
        self._sample()
        self._thread.start()

    def stop(self) -> RunTelemetry:
        """End, and hand over what was seen."""
        self._stop.set()
        self._thread.join()
        self._sample()
        self._out.cpu_s = self._cpu_time() - self._cpu_before
        self._out.peak_rss_bytes = max(s["rss_bytes"] for s in self._out.samples)
        energy = self._gpu.energy_j() if self._gpu else None
        if energy is not None and self._energy_before is not None:
            self._out.energy_j = energy - self._energy_before
        return self._out

    def _loop(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._sample()

    def _sample(self) -> None:
        at = time.perf_counter() - self._started
        sample: dict[str, Any] = {"time_s": at, "rss_bytes": self._rss_bytes()}
        if self._out.samples:
            sample["cpu_percent"] = self._cpu_percent()
        if self._meter is not None:
            usage = self._meter.kv_usage()
            sample.update(
                {k: usage[k] for k in ("kv_used_tokens", "kv_reserved_tokens", "running", "waiting")}
            )
        if self._gpu is not None:
            sample.update(_gpu_fields(self._gpu.read({p.pid for p in self._processes})))
        self._out.samples.append(sample)

    def _cpu_time(self) -> float:
        return sum(float(t.user + t.system) for t in self._each(psutil.Process.cpu_times))

    def _cpu_percent(self) -> float:
        return float(sum(self._each(psutil.Process.cpu_percent)))

    def _rss_bytes(self) -> int:
        return sum(int(m.rss) for m in self._each(psutil.Process.memory_info))

    def _each(self, ask: Callable[[psutil.Process], Any]) -> Iterator[Any]:
        """What each process says; one that has left meanwhile says nothing."""
        for process in self._processes:
            with suppress(psutil.NoSuchProcess):
                yield ask(process)


# field of `TelemetrySample` ← field of `GpuReading`. The memory in use on the whole card would count every configuration that
# is loaded beside this one.
_GPU_FIELDS = {
    "gpu_memory_bytes": "process_memory_bytes", "gpu_power_w": "power_w", "gpu_sm_clock_mhz": "sm_clock_mhz",
    "gpu_throttle_reasons": "throttle_reasons",
}  # fmt: skip


def _gpu_fields(reading: GpuReading) -> dict[str, Any]:
    """What the GPU said; what it did not say is left out."""
    found = {name: getattr(reading, source) for name, source in _GPU_FIELDS.items()}
    return {name: value for name, value in found.items() if value is not None}
