"""NVML's meters of one GPU: power, energy, memory, clocks. Read by the server's metrics and by the bench.

What NVML does not give is None, never 0, and the log says so once. The energy counter is the board's own and moves about
ten times a second, whoever uses the board: a difference over less than a second or two says little.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

log = logging.getLogger("inferoptim.hardware")


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU now; None is what NVML does not say."""

    index: int  # NVML's, in the order of the PCI bus: CUDA_VISIBLE_DEVICES does not change it
    uuid: str
    power_w: float | None  # of the board
    energy_j: float | None  # of the board, since the meter was opened
    memory_used_bytes: int | None  # by everybody
    memory_total_bytes: int | None
    process_memory_bytes: int | None  # of the processes asked for; None also where NVML sees none of them
    utilization: float | None
    sm_clock_mhz: float | None
    throttle_reasons: int | None  # bits, nvml.h: nvmlClocksEventReason*


class GpuMeter:
    """One GPU, found by UUID: indices differ between NVML and CUDA_VISIBLE_DEVICES.

    Raises:
        Exception: no package, no library, no driver, no such GPU: each has its own class. `open_gpu_meters` turns them
            into a line in the log.
    """

    def __init__(self, uuid: str) -> None:
        import pynvml

        pynvml.nvmlInit()
        self._nvml = pynvml
        self.uuid = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(self.uuid)
        self.index = int(pynvml.nvmlDeviceGetIndex(self._handle))
        self._said: set[str] = set()
        self._energy_before_j = self._counter_j()

    def read(self, pids: Collection[int] = ()) -> GpuReading:
        """All meters now; `pids` are the processes whose memory is asked for."""
        nvml = self._nvml
        memory = self._ask("memory", "nvmlDeviceGetMemoryInfo")
        power_mw = self._ask("power", "nvmlDeviceGetPowerUsage")
        rates = self._ask("utilization", "nvmlDeviceGetUtilizationRates")
        clock = self._ask("SM clock", "nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM)
        throttle = self._ask("throttle reasons", "nvmlDeviceGetCurrentClocksEventReasons")
        return GpuReading(
            self.index,
            self.uuid,
            None if power_mw is None else power_mw / 1000.0,
            self.energy_j(),
            None if memory is None else int(memory.used),
            None if memory is None else int(memory.total),
            self._process_memory_bytes(pids) if pids else None,
            None if rates is None else rates.gpu / 100.0,
            None if clock is None else float(clock),
            None if throttle is None else int(throttle),
        )

    def energy_j(self) -> float | None:
        """What the board has used since the meter was opened, joules."""
        now = self._counter_j()
        return None if now is None or self._energy_before_j is None else now - self._energy_before_j

    def _counter_j(self) -> float | None:
        millijoules = self._ask("energy", "nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else millijoules / 1000.0

    def _process_memory_bytes(self, pids: Collection[int]) -> int | None:
        # NVML says None of a process where the driver does not tell, and sees no process of another PID namespace
        found = self._ask("memory by process", "nvmlDeviceGetComputeRunningProcesses") or ()
        held = [p.usedGpuMemory for p in found if p.pid in pids]
        return int(sum(held)) if held and None not in held else None

    def _ask(self, what: str, name: str, *arguments: Any) -> Any:
        function: Callable[..., Any] | None = getattr(self._nvml, name, None)
        if function is None:
            self._say(what, f"this pynvml has no {name}")
            return None
        try:
            return function(self._handle, *arguments)
        except self._nvml.NVMLError as error:
            self._say(what, str(error))
            return None

    def _say(self, what: str, why: str) -> None:
        if what not in self._said:
            self._said.add(what)
            log.warning("GPU %d (%s): %s is not measured: %s", self.index, self.uuid, what, why)


def cuda_uuids(index: int | None = None) -> list[str]:
    """UUID of a CUDA device as torch numbers them (None: the current one); empty where torch does not tell."""
    import torch

    try:
        device = torch.cuda.current_device() if index is None else index
        return [str(torch.cuda.get_device_properties(device).uuid)]
    except Exception as error:  # a build of torch without it, a driver that does not answer
        log.warning("power, energy and memory of the GPU are not measured: torch gives no UUID: %s", error)
        return []


def open_gpu_meters(uuids: Iterable[str]) -> list[GpuMeter]:
    """A meter for each GPU that NVML knows; of any other, one line in the log says why there is none."""
    meters = []
    for uuid in uuids:
        try:
            meters.append(GpuMeter(uuid))
        except ModuleNotFoundError:
            log.warning(
                "power, energy and memory of the GPU are not measured: pip install 'inference-optim-llm[gpu]'"
            )
            break
        except Exception as error:  # whatever the library or the driver raises: then there is no meter
            log.warning("power, energy and memory of GPU %s are not measured: %s", uuid, error)
    return meters
