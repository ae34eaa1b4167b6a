"""The machine as tuned engine settings see it: settings found on one hold for its equals only."""

from __future__ import annotations

from functools import cache

import torch

from inferoptim.hardware.cpu import cpu_facts, usable_cores
from inferoptim.hardware.nvml import driver_and_names
from inferoptim.kernels import cpu


@cache
def machine() -> dict[str, str]:
    """Processor or GPU, driver and software, by name; equal dictionaries mean that tuned settings carry over."""
    facts = {"torch": torch.__version__, "cores": str(usable_cores()), "processor": cpu_facts().model}
    if torch.cuda.is_available():
        facts["device"] = torch.cuda.get_device_name(0)
        facts["driver"] = driver_and_names()[0] or "unknown"
        facts["cuda"] = str(torch.version.cuda)
    else:
        facts["device"] = "cpu"
        facts["kernels"] = cpu.isa() or "torch"
    return facts
