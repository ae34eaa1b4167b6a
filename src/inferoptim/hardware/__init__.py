"""What a device can do at most: published peaks, facts about this CPU, and ceilings measured here.

Low layer: imports nothing of the package but units and errors; torch only inside the functions that measure.
"""

from __future__ import annotations

from inferoptim.hardware.ceilings import cached_ceilings, ceilings, measure_ceilings
from inferoptim.hardware.cpu import CpuFacts, cpu_facts, memory_limit_bytes, usable_cores
from inferoptim.hardware.measured import MachineCeilings
from inferoptim.hardware.peaks import DEVICES, DevicePeaks, device_peaks, find_device

__all__ = [
    "DEVICES",
    "CpuFacts",
    "DevicePeaks",
    "MachineCeilings",
    "cached_ceilings",
    "ceilings",
    "cpu_facts",
    "device_peaks",
    "find_device",
    "measure_ceilings",
    "memory_limit_bytes",
    "usable_cores",
]
