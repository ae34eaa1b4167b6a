"""What the NVIDIA driver reports of the GPUs that this server may use. Absent where there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU now; None is what it does not report."""

    index: int
    uuid: str
    power_w: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    utilization: float | None
    energy_j: float | None  # since the reader was made


class GpuReader:
    """Readings through NVML. `create` gives None without a driver, a GPU or the package."""

    def __init__(self, nvml: Any, handles: list[Any]) -> None:
        self._nvml, self._handles = nvml, handles
        self._start_j = [self._energy_j(handle) for handle in handles]

    @classmethod
    def create(cls) -> GpuReader | None:
        """A reader, if there is anything to read."""
        try:
            import pynvml

            pynvml.nvmlInit()
            handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        except Exception:  # no package, no library, no driver, no permission: each has its own class
            return None
        return cls(pynvml, handles) if handles else None

    def read(self) -> list[GpuReading]:
        """All GPUs, now."""
        return [self._read(i, handle) for i, handle in enumerate(self._handles)]

    def _read(self, index: int, handle: Any) -> GpuReading:
        nvml = self._nvml
        memory = self._ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        power_mw = self._ask(nvml.nvmlDeviceGetPowerUsage, handle)
        rates = self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        energy_j, start_j = self._energy_j(handle), self._start_j[index]
        return GpuReading(
            index,
            str(self._ask(nvml.nvmlDeviceGetUUID, handle)),
            None if power_mw is None else power_mw / 1000.0,
            None if memory is None else memory.used,
            None if memory is None else memory.total,
            None if rates is None else rates.gpu / 100.0,
            None if energy_j is None or start_j is None else energy_j - start_j,
        )

    def _energy_j(self, handle: Any) -> float | None:
        millijoules = self._ask(self._nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
        return None if millijoules is None else millijoules / 1000.0

    def _ask(self, function: Any, handle: Any) -> Any:
        try:
            return function(handle)
        except self._nvml.NVMLError:
            return None
