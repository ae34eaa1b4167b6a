"""A stand-in for the module pynvml, for machines without an NVIDIA GPU. It answers with the figures that a test sets."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any


@dataclass
class StandInGpu:
    """One board. What is in `broken` raises, as NVML does for what a board does not support, or once it is lost."""

    uuid: str
    index: int = 0
    power_mw: int = 250_000
    millijoules: int = 1_000
    step_mj: int = 0  # what the counter grows by each time that it is asked
    processes: dict[int, int | None] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)


class StandInNvml:
    """Put it into `sys.modules` as "pynvml"."""

    NVML_CLOCK_SM = 1

    class NVMLError(Exception):
        pass

    def __init__(self, *gpus: StandInGpu) -> None:
        self.gpus = {gpu.uuid: gpu for gpu in gpus}

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> StandInGpu:
        if uuid not in self.gpus:
            raise self.NVMLError("Not Found")
        return self.gpus[uuid]

    def nvmlDeviceGetIndex(self, gpu: StandInGpu) -> int:
        return gpu.index

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: StandInGpu) -> int:
        self._work(gpu, "energy")
        gpu.millijoules += gpu.step_mj
        return gpu.millijoules

    def nvmlDeviceGetMemoryInfo(self, gpu: StandInGpu) -> Any:
        self._work(gpu, "memory")
        return SimpleNamespace(used=5_000, total=80_000)

    def nvmlDeviceGetComputeRunningProcesses(self, gpu: StandInGpu) -> list[Any]:
        self._work(gpu, "processes")
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in gpu.processes.items()]

    def nvmlDeviceGetPowerUsage(self, gpu: StandInGpu) -> int:
        self._work(gpu, "power")
        return gpu.power_mw

    def nvmlDeviceGetUtilizationRates(self, gpu: StandInGpu) -> Any:
        self._work(gpu, "rates")
        return SimpleNamespace(gpu=40, memory=10)

    def nvmlDeviceGetClockInfo(self, gpu: StandInGpu, _kind: int) -> int:
        self._work(gpu, "clock")
        return 1980

    def nvmlDeviceGetCurrentClocksEventReasons(self, gpu: StandInGpu) -> int:
        self._work(gpu, "reasons")
        return 4

    def _work(self, gpu: StandInGpu, what: str) -> None:
        if what in gpu.broken or "all" in gpu.broken:
            raise self.NVMLError(f"no {what}")
