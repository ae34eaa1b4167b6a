"""Kernels compiled ahead of their first launch: side by side, by processes that never touch a GPU, into Triton's cache.

Works on tensors of the device "meta": a launch tells Triton types, alignments and constants, and that is all it compiles by.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from inferoptim.kernels.triton import launch

_LONGEST = {"_choose", "_decode", "_varlen"}  # begin with these: nothing waits for them at the end


class Job(NamedTuple):
    """One kernel to compile."""

    name: str
    run: Callable[[], None]


class _NoDevice:
    """What Triton asks of a driver while it compiles and does not launch."""

    def __init__(self, capability: tuple[int, int]) -> None:
        self._target = _target(capability)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def _target(capability: tuple[int, int]) -> GPUTarget:
    return GPUTarget("cuda", 10 * capability[0] + capability[1], 32)


@contextmanager
def collecting(capability: tuple[int, int]) -> Iterator[list[Job]]:
    """Within, launches are noted instead of made; each kernel that would be compiled for them is one job of the list.

    Args:
        capability: of the device that the kernels are for.
    """
    jobs = [Job("the driver's functions", _compile_utils)]
    seen: set[tuple[int, str]] = set()
    real = JITFunction.run

    def note(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        binder = kernel.device_caches[0][-1]
        _, specialization, options = binder(
            *args, **kwargs, debug=kernel.debug, instrumentation_mode=triton.knobs.compilation.instrumentation_mode
        )  # fmt: skip
        key = (id(kernel), f"{specialization}{options}")
        if key not in seen:
            seen.add(key)
            jobs.append(Job(kernel.__name__, lambda: _compile(real, kernel, args, kwargs)))

    before = driver._active
    driver.set_active(_NoDevice(capability))
    JITFunction.run = note
    launch.compiling_for = capability
    launch.note_job = lambda name, run: jobs.append(Job(name, run))
    try:
        yield jobs
    finally:
        JITFunction.run = real
        driver._active = before
        launch.compiling_for = launch.note_job = None


def _compile_utils() -> None:
    from triton.backends.nvidia.driver import CudaUtils

    CudaUtils()


def _compile(real: Any, kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    compiled = real(kernel, *args, grid=None, warmup=True, **kwargs)
    from triton.backends.nvidia.driver import CudaLauncher

    CudaLauncher(compiled.src, compiled.metadata)  # the C function that launches it is compiled, too


def know_compiler(capability: tuple[int, int]) -> None:
    """Find out what Triton asks before any compilation: the digest of its own files and the versions of its tools.

    Kept by Triton once found, in this process and those forked from it; about half a second of one core, without the GIL.
    """
    with suppress(ImportError):  # another Triton may keep it elsewhere; the first kernel then asks
        from triton.runtime.cache import triton_key

        triton_key()
        make_backend(_target(capability)).hash()


def compile_side_by_side(jobs: Sequence[Job], most: int) -> bool:
    """Do the jobs in forked processes, a process a job, which end with it. What fails is left to the first launch.

    For a process that does nothing else: it must hold no lock and no CUDA context that the forked ones could want.

    Args:
        most: processes at once.

    Returns:
        Whether all went well.
    """
    running, good = 0, True
    for job in sorted(jobs, key=lambda job: job.name not in _LONGEST):
        if running == most:
            good &= os.wait()[1] == 0
            running -= 1
        if os.fork() == 0:
            status = 1
            try:
                job.run()
                status = 0
            finally:
                os._exit(status)
        running += 1
    for _ in range(running):
        good &= os.wait()[1] == 0
    return good


def cache_folder() -> Path:
    """Where Triton keeps what it compiles."""
    return Path(triton.knobs.cache.dir)
