"""What ``inferoptim doctor`` looks at: each probe yields its lines of the table."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal

from inferoptim.units import GIB, format_bytes

if TYPE_CHECKING:
    pass


HUB_LIMIT_S = 3.0


ROOM_WANTED_BYTES = 2 * GIB  # the default KV budget (1 GiB) beside the default model and torch


# Oldest Linux driver for each major CUDA, under minor-version compatibility.
# Source: NVIDIA CUDA Toolkit release notes, table "CUDA Toolkit and Minimum Required Driver Version".
MIN_DRIVER = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}


Status = Literal["ok", "gap", "missing", "info"]


@dataclass(frozen=True)
class Finding:
    """One line of the table. `missing` is required and absent; `gap` costs speed or a feature; `info` is a fact."""

    name: str
    value: str
    status: Status = "ok"
    advice: str | None = None


def _python() -> Iterator[Finding]:
    supported = sys.version_info >= (3, 10)
    yield Finding(
        "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "ok" if supported else "missing", None if supported else "install Python 3.10 or later",
    )  # fmt: skip


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library that does not load
        yield Finding("torch", f"does not import: {error}", "missing", "pip install -c constraints.txt torch")
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    yield Finding("torch", f"{torch.__version__} ({build})")


def _cpu() -> Iterator[Finding]:
    from inferoptim.hardware import cpu_facts

    cpu = cpu_facts()
    text = f"{cpu.model}, {cpu.usable_cores} of {cpu.logical_cores} cores usable"
    if cpu.quota_cores is not None:
        text += f" (quota {cpu.quota_cores:g})"
    if cpu.llc_bytes is not None:
        text += f", last-level cache {format_bytes(cpu.llc_bytes)}"
    yield Finding("CPU", text)
    wide = {"avx512_vnni", "avx_vnni", "dotprod"} & set(cpu.isa)
    yield Finding(
        "CPU instructions", ", ".join(cpu.isa) or "none known", "ok" if wide else "gap",
        None if wide else "no integer dot product (VNNI, DotProd): int8 will gain less here",
    )  # fmt: skip


def _memory() -> Iterator[Finding]:
    import psutil

    from inferoptim.hardware import memory_limit_bytes

    memory, limit = psutil.virtual_memory(), memory_limit_bytes()
    text = f"{format_bytes(memory.available)} free of {format_bytes(memory.total)}"
    text += f", limit {format_bytes(limit)}" if limit is not None else ""
    enough = min(memory.available, limit or memory.total) >= ROOM_WANTED_BYTES
    advice = f"under {format_bytes(ROOM_WANTED_BYTES)}: close something, or lower the KV-cache budget"
    yield Finding("Memory", text, "ok" if enough else "gap", None if enough else advice)


def _disk() -> Iterator[Finding]:
    from inferoptim.models.cache import cache_root

    folder = cache_root()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if not os.access(existing, os.W_OK):
        yield Finding(
            "Disk", f"{folder} cannot be written", "missing", "set INFEROPTIM_HOME to a folder of yours"
        )
    elif free < ROOM_WANTED_BYTES:
        yield Finding(
            "Disk", f"{format_bytes(free)} free at {folder}", "gap", "free some, or set INFEROPTIM_HOME"
        )
    else:
        yield Finding("Disk", f"{format_bytes(free)} free at {folder}")


def _model_cache() -> Iterator[Finding]:
    from inferoptim.models.cache import MANIFEST_NAME, cache_root, read_manifest

    models = [read_manifest(path) for path in sorted(cache_root().rglob(MANIFEST_NAME))]
    for manifest in models:
        size = sum(record.size_bytes for record in manifest.files)
        yield Finding("Cached model", f"{manifest.model} ({format_bytes(size)}, from {manifest.origin})")
    if not models:
        yield Finding(
            "Cached model", "none yet", "info", "inferoptim pull smollm2-135m (bench also fetches it)"
        )


def _compiler() -> Iterator[Finding]:
    from inferoptim.hardware.measure_cpu import find_compiler

    path = find_compiler()
    if path is None:
        yield Finding("C++ compiler", "none found", "gap", "native CPU kernels need one: apt-get install g++")
        return
    answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)
    yield Finding("C++ compiler", (answer.stdout.splitlines() or [path])[0])


def _native_kernels() -> Iterator[Finding]:
    from inferoptim.kernels import cpu

    describe = getattr(cpu, "describe", None)
    if describe is None:
        yield Finding(
            "Native kernels", "not part of this version", "info", "the CPU path uses torch operators"
        )
        return
    state = describe()
    text = (
        ", ".join(f"{key}: {value}" for key, value in state.items())
        if isinstance(state, dict)
        else str(state)
    )
    yield Finding("Native kernels", text)


def _gpus() -> Iterator[Finding]:
    import torch

    from inferoptim.hardware.nvml import driver_and_names

    driver, names = driver_and_names()
    cuda = torch.version.cuda
    if not names and not torch.cuda.is_available():
        yield Finding(
            "GPU", "no NVIDIA GPU found", "info", "the CPU path works; GPU levers and targets are left out"
        )
        return
    if cuda is None:
        yield Finding(
            "GPU", f"{', '.join(names)} (driver {driver})", "gap",
            "this torch is a CPU-only build: reinstall it from PyPI (pip install --force-reinstall torch)",
        )  # fmt: skip
        return
    too_old = driver_gap(driver, cuda)
    if too_old or not torch.cuda.is_available():
        advice = (
            too_old
            or "the driver sees the GPU but torch does not: check CUDA_VISIBLE_DEVICES and permissions"
        )
        yield Finding("GPU", f"{', '.join(names)} (driver {driver})", "gap", advice)
        return
    for index in range(torch.cuda.device_count()):
        facts: Any = torch.cuda.get_device_properties(index)
        yield Finding(
            f"GPU {index}", f"{facts.name}, {format_bytes(facts.total_memory)}, compute capability {facts.major}.{facts.minor}, "
            f"driver {driver or 'unknown'}, CUDA {cuda}",
        )  # fmt: skip
    if driver is None:
        yield Finding(
            "NVML", "not readable", "gap",
            "no energy, power or clocks in the records: pip install 'inference-optim-llm[gpu]'",
        )  # fmt: skip


def driver_gap(driver: str | None, cuda: str) -> str | None:
    """What to do if `driver` is older than the `cuda` of this torch needs; None if it is recent enough or unknown."""
    needed = MIN_DRIVER.get(int(cuda.partition(".")[0]))
    if driver is None or needed is None:
        return None
    if [int(part) for part in driver.split(".")] >= [int(part) for part in needed.split(".")]:
        return None
    return f"driver {driver} is older than torch's CUDA {cuda} needs: install {needed} or later"


def _packages() -> Iterator[Finding]:
    for module, distribution, advice in (
        (
            "transformers",
            "transformers",
            "the bench's baseline needs it: pip install 'inference-optim-llm[bench]'",
        ),
        ("triton", "triton", None),
        ("vllm", "vllm", None),
        ("tensorrt_llm", "tensorrt-llm", None),
    ):
        if find_spec(module) is not None:
            try:
                yield Finding(module, version(distribution))
            except PackageNotFoundError:
                yield Finding(module, "installed, version unknown")
        elif advice:
            yield Finding(module, "not installed", "gap", advice)
        else:
            yield Finding(module, "not installed (optional, needs an NVIDIA GPU)", "info")


def _hub() -> Iterator[Finding]:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        yield Finding("Model hub", "not asked: HF_HUB_OFFLINE is set", "info")
        return
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    problem = unreachable(endpoint, HUB_LIMIT_S)
    if problem is None:
        yield Finding("Model hub", f"{endpoint} answers")
    else:
        yield Finding(
            "Model hub", f"{endpoint}: {problem}", "gap",
            "the default model also comes from the Python package index; for others set HF_ENDPOINT or HTTPS_PROXY, "
            "or give a local folder or a .gguf file",
        )  # fmt: skip


def unreachable(url: str, limit_s: float) -> str | None:
    """Why `url` does not answer within `limit_s` (name resolution included); None if it does, whatever it says."""
    from urllib.error import HTTPError, URLError
    from urllib.request import Request, urlopen

    outcome: list[str | None] = [f"no answer within {limit_s:g} s"]

    def ask() -> None:
        try:
            urlopen(Request(url, method="HEAD"), timeout=limit_s).close()
            outcome[0] = None
        except HTTPError:
            outcome[0] = None  # it answered
        except (URLError, OSError, ValueError) as error:
            outcome[0] = str(getattr(error, "reason", error))

    thread = Thread(target=ask, daemon=True)  # a resolver can hang for longer than any socket timeout
    thread.start()
    thread.join(limit_s)
    return outcome[0]


PROBES: tuple[Callable[[], Iterator[Finding]], ...] = (
    _python, _torch, _cpu, _memory, _compiler, _native_kernels, _gpus, _packages, _disk, _model_cache, _hub,
)  # fmt: skip
