"""Published peaks of accelerators: dense rates, a source for each, None where the maker states nothing.

A published peak sizes a plan; it is never a measurement. What a machine reaches is measured in `ceilings.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

from inferoptim.errors import UnsupportedError

GB = 1e9  # makers state capacity and bandwidth in decimal units
TERA = 1e12


@dataclass(frozen=True)
class DevicePeaks:
    """Peaks of one device, per device, without sparsity. None: the maker states none, or the device lacks the type."""

    name: str
    aliases: tuple[str, ...]  # other names, as drivers and price lists write them; matched after `_normalise`
    memory_bytes: float  # nominal; drivers report a little more or less
    bandwidth_bytes_per_s: float
    bf16_flops_per_s: float | None
    fp8_flops_per_s: float | None
    int8_ops_per_s: float | None
    tdp_w: float
    source: str
    note: str = ""


def _device(
    name: str,
    aliases: tuple[str, ...],
    memory_gb: float,
    bandwidth_gb_per_s: float,
    rates_tera: tuple[float | None, float | None, float | None],  # bf16, fp8, int8
    tdp_w: float,
    source: str,
    note: str = "",
) -> DevicePeaks:
    bf16, fp8, int8 = (None if rate is None else rate * TERA for rate in rates_tera)
    return DevicePeaks(
        name, aliases, memory_gb * GB, bandwidth_gb_per_s * GB, bf16, fp8, int8, tdp_w, source, note
    )


_HALVED = "stated with sparsity; dense is half"

DEVICES: tuple[DevicePeaks, ...] = (
    _device("B200", ("b200-sxm", "hgx b200"), 180, 8000, (2250, 4500, 4500), 1000, "NVIDIA HGX B200 datasheet", _HALVED),
    _device("H200", ("h200-sxm", "h200 sxm 141gb"), 141, 4800, (989.5, 1979, 1979), 700, "NVIDIA H200 datasheet", _HALVED),
    _device(
        "H100 SXM", ("h100", "h100 80gb hbm3", "h100 sxm5", "h100 sxm5 80gb"), 80, 3350, (989.5, 1979, 1979), 700,
        "NVIDIA H100 datasheet", _HALVED,
    ),
    _device("H100 PCIe", ("h100 pcie 80gb",), 80, 2000, (756.5, 1513, 1513), 350, "NVIDIA H100 datasheet", _HALVED),
    _device(
        "A100 80GB SXM", ("a100", "a100 80gb", "a100 sxm4 80gb", "a100 sxm"), 80, 2039, (312, None, 624), 400,
        "NVIDIA A100 datasheet",
    ),
    _device("A100 80GB PCIe", ("a100 pcie 80gb",), 80, 1935, (312, None, 624), 300, "NVIDIA A100 datasheet"),
    _device("A100 40GB SXM", ("a100 40gb", "a100 sxm4 40gb"), 40, 1555, (312, None, 624), 400, "NVIDIA A100 datasheet"),
    _device("A100 40GB PCIe", ("a100 pcie 40gb",), 40, 1555, (312, None, 624), 250, "NVIDIA A100 datasheet"),
    _device("L40S", (), 48, 864, (362.05, 733, 733), 350, "NVIDIA L40S datasheet"),
    _device("L4", (), 24, 300, (121, 242.5, 242.5), 72, "NVIDIA L4 datasheet", _HALVED),
    _device("A10", ("a10 pcie",), 24, 600, (125, None, 250), 150, "NVIDIA A10 datasheet"),
    _device(
        "T4", ("tesla t4",), 16, 320, (None, None, 130), 70, "NVIDIA T4 datasheet", "no bf16 (Turing); fp16 is 65 TFLOP/s"
    ),
    _device(
        "RTX 4090", ("4090",), 24, 1008, (165.2, 330.3, 660.6), 450, "NVIDIA Ada GPU architecture whitepaper, appendix A",
        "bf16 and fp8 with fp32 accumulation, as LLM libraries use them",
    ),
    _device(
        "RTX 4070", ("4070",), 12, 504.2, (58.3, 116.6, 233.2), 200,
        "computed: 46 SM x 512 bf16 FLOP/clock x 2.475 GHz (rates per SM: NVIDIA Ada GPU architecture whitepaper)",
        "bf16 and fp8 with fp32 accumulation; bandwidth and power: NVIDIA product page",
    ),
    _device(
        "RTX 3090", ("3090",), 24, 936.2, (71, None, 284), 350, "NVIDIA Ampere GA102 whitepaper, appendix A",
        "bf16 with fp32 accumulation",
    ),
    _device(
        "MI300X", ("instinct mi300x", "mi300x oam"), 192, 5300, (1307.4, 2614.9, 2614.9), 750,
        "AMD Instinct MI300X datasheet", "data only: this project's GPU path needs an NVIDIA GPU",
    ),
)  # fmt: skip


def find_device(name: str) -> DevicePeaks | None:
    """The peaks of the device so named (a driver's name, a datasheet's or a short one), or None.

    Matches whole names only: an 'A10G' or an 'RTX 4090 Laptop GPU' is another device, and unknown.
    """
    return _BY_NAME.get(_normalise(name))


def device_peaks(name: str) -> DevicePeaks:
    """The peaks of the device so named.

    Raises:
        UnsupportedError: not in the table; names the nearest ones.
    """
    found = find_device(name)
    if found is not None:
        return found
    near = get_close_matches(_normalise(name), _BY_NAME, n=4, cutoff=0.4)
    candidates = list(dict.fromkeys(_BY_NAME[key].name for key in near)) or [
        device.name for device in DEVICES
    ]
    label = "did you mean" if near else "known devices:"
    raise UnsupportedError(f"no published peaks for the device {name!r}; {label} {', '.join(candidates)}")


def _normalise(name: str) -> str:
    words = re.split(r"[^a-z0-9.]+", name.lower())
    dropped = {"nvidia", "amd", "geforce", "gpu", "tensor", "core", "tesla", "instinct", ""}
    return " ".join(word for word in words if word not in dropped)


_BY_NAME = {_normalise(name): device for device in DEVICES for name in (device.name, *device.aliases)}
