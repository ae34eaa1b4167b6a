"""Background samples of a run: memory, processor, KV-cache, and the GPU's own meters where there is one.

What has no meter stays None. The thread lives in the worker process, beside the target that it watches.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psutil

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
            sample.update(self._gpu.sample({p.pid for p in self._processes}))
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


class GpuMeter:
    """NVML's view of one GPU, found by UUID: indices differ between NVML and CUDA_VISIBLE_DEVICES."""

    def __init__(self, uuid: str) -> None:
        import pynvml

        self._nvml = pynvml
        pynvml.nvmlInit()
        name = uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(name)

    def energy_j(self) -> float | None:
        """The board's energy counter since the driver was loaded, joules; None where the card has none."""
        with suppress(self._nvml.NVMLError):
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000.0
        return None

    def sample(self, pids: Collection[int]) -> dict[str, Any]:
        """Memory of these processes, and the card's power, clock and throttling now; what NVML does not say is left out.

        The memory in use on the whole card would count every configuration that is loaded beside this one.
        """
        nvml, handle = self._nvml, self._handle
        out: dict[str, Any] = {}
        with suppress(nvml.NVMLError):
            held = [
                p.usedGpuMemory for p in nvml.nvmlDeviceGetComputeRunningProcesses(handle) if p.pid in pids
            ]
            if held and None not in held:
                out["gpu_memory_bytes"] = int(sum(held))
        with suppress(nvml.NVMLError):
            out["gpu_power_w"] = nvml.nvmlDeviceGetPowerUsage(handle) / 1000.0
        with suppress(nvml.NVMLError):
            out["gpu_sm_clock_mhz"] = float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))
        with suppress(nvml.NVMLError):
            out["gpu_throttle_reasons"] = int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
        return out


def open_gpu_meter(device: str) -> GpuMeter | None:
    """A meter for the current CUDA device; None on a CPU, without NVML, or where NVML does not know the card."""
    if device != "cuda":
        return None
    try:
        import torch

        return GpuMeter(str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid))
    except Exception:  # whatever a driver or a missing library raises: then there is no meter
        return None
