"""Measure this CPU: streaming and cache-resident reads, and matrix products, with all threads."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from inferoptim.hardware.cpu import cpu_facts, memory_limit_bytes
from inferoptim.hardware.measured import MachineCeilings, best_rate, cache_folder
from inferoptim.units import GIB, MIB, format_bytes

if TYPE_CHECKING:
    from torch import Tensor

GEMM_SIZE = 2048  # 2048³: as large as a small model's products, and 10 ms or more on a laptop's core
CACHED_BUFFER_BYTES = 128 * MIB  # an int8 model of 135 M parameters
TOUCH_LIMIT_S = 4.0  # a fresh virtual machine may need seconds to hand out one GiB
_CHUNK = 32 * MIB


def measure(num_threads: int, on_step: Callable[[str], None]) -> MachineCeilings:
    """Best read and product rates of this CPU with `num_threads` threads; about 8 s."""
    import torch

    threads_before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        on_step("streaming read")
        reads, cached, buffer_bytes, cached_bytes, notes = _measure_reads(num_threads)
        on_step("matrix products")
        gemm, gemm_notes = _measure_gemm()
    finally:
        torch.set_num_threads(threads_before)
    facts = cpu_facts()
    return MachineCeilings(
        device=facts.model,
        reads_bytes_per_s=reads,
        stream_buffer_bytes=buffer_bytes,
        cached_read_bytes_per_s=cached,
        cached_buffer_bytes=cached_bytes,
        llc_bytes=facts.llc_bytes,
        gemm_flops_per_s=gemm,
        num_threads=num_threads,
        torch_version=torch.__version__,
        notes=(*notes, *gemm_notes),
    )


def _measure_reads(num_threads: int) -> tuple[dict[str, float], float | None, int, int | None, list[str]]:
    import torch

    llc = cpu_facts().llc_bytes
    buffer, notes = _touched_buffer(max(GIB, 4 * (llc or 0)))
    n_bytes = buffer.numel() * buffer.element_size()
    if llc is not None and n_bytes < 2 * llc:
        notes.append(
            f"the buffer is under twice the last-level cache ({format_bytes(llc)}): part of it was read from there"
        )
    ones = torch.ones(4096)
    readers: dict[str, Callable[[Tensor, int], Callable[[], object]]] = {
        "torch dot": lambda data, passes: lambda: [torch.dot(data, data) for _ in range(passes)],
        "torch matrix-vector": lambda data, passes: (
            lambda: [torch.mv(data.view(-1, 4096), ones) for _ in range(passes)]
        ),
    }
    library = native_reader()
    if library is None:
        notes.append(
            "no C++ compiler: reads measured with torch operators only, which may understate the ceiling"
        )
    else:
        readers["native"] = lambda data, passes: (
            lambda: library.stream_read(data.data_ptr(), data.numel() * 4, num_threads, passes)
        )
    reads = {name: best_rate(reader(buffer, 1), n_bytes, budget_s=0.6) for name, reader in readers.items()}

    cached, cached_bytes = None, None
    if llc is not None:
        cached_bytes = min(CACHED_BUFFER_BYTES, llc // 2) // (4096 * 4) * (4096 * 4)
        if cached_bytes > 0:
            part = buffer[: cached_bytes // 4]
            passes = max(1, CACHED_BUFFER_BYTES // cached_bytes)
            cached = max(
                best_rate(reader(part, passes), cached_bytes * passes, budget_s=0.4)
                for reader in readers.values()
            )
    return reads, cached, n_bytes, cached_bytes or None, notes


def _touched_buffer(wanted_bytes: int) -> tuple[Tensor, list[str]]:
    """A float32 buffer whose every page is really there, in huge pages where the system has them."""
    import psutil
    import torch

    wanted_bytes = -(-wanted_bytes // _CHUNK) * _CHUNK
    room = min(psutil.virtual_memory().available, memory_limit_bytes() or 2**63) // 4
    size = max(min(wanted_bytes, room // _CHUNK * _CHUNK), _CHUNK)
    memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    buffer = torch.frombuffer(memory, dtype=torch.float32)
    started, touched = perf_counter(), 0
    while touched < size and (touched < 256 * MIB or perf_counter() - started < TOUCH_LIMIT_S):
        buffer[touched // 4 : (touched + _CHUNK) // 4].fill_(
            1.0
        )  # an untouched page is one shared page of zeros
        touched += _CHUNK
    notes = []
    if touched < wanted_bytes:
        why = f"more was not handed out in {TOUCH_LIMIT_S:.0f} s" if touched < size else "memory is short"
        notes.append(f"streamed {format_bytes(touched)} instead of {format_bytes(wanted_bytes)}: {why}")
    return buffer[: touched // 4], notes


def _measure_gemm() -> tuple[dict[str, float], list[str]]:
    import torch

    n, flops = GEMM_SIZE, 2.0 * GEMM_SIZE**3
    rates: dict[str, float] = {}
    notes: list[str] = []
    for dtype, name in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16"), (torch.int8, "int8")):
        a, b = torch.ones(n, n, dtype=dtype), torch.ones(n, n, dtype=dtype)
        multiply: Any = torch._int_mm if dtype == torch.int8 else torch.mm
        try:
            with torch.inference_mode():
                rates[name] = best_rate(partial(multiply, a, b), flops, budget_s=0.5)
        except RuntimeError as error:  # a build without that kernel
            notes.append(
                f"{name} products: not measured, this torch refuses them ({str(error).splitlines()[0]})"
            )
    return rates, notes


def native_reader() -> ctypes.CDLL | None:
    """The compiled reader (`stream.cpp`), built once per source and CPU; None where it cannot be."""
    compiler = find_compiler()
    source = Path(__file__).with_name("stream.cpp")
    if compiler is None:
        return None
    key = hashlib.sha256(source.read_bytes() + f"{compiler}{cpu_facts()}".encode()).hexdigest()[:16]
    library = cache_folder() / f"stream-{key}.so"
    try:
        if not library.exists():
            library.parent.mkdir(parents=True, exist_ok=True)
            aside = library.with_suffix(f".{os.getpid()}.tmp")
            command = [compiler, "-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread"]
            subprocess.run(
                [*command, str(source), "-o", str(aside)], check=True, capture_output=True, timeout=60
            )
            os.replace(aside, library)
        loaded = ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError):  # no room, no right to execute, or a compiler that fails
        return None
    loaded.stream_read.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int]
    loaded.stream_read.restype = ctypes.c_uint64
    return loaded


def find_compiler() -> str | None:
    """Path of the C++ compiler: ``$CXX``, else g++, clang++ or c++; None without one."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and (path := shutil.which(name)):
            return path
    return None
