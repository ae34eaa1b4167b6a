"""The kernels in CUDA C++ on a CPU: compiled as C++ with a `tensor.cuh` whose threads are fibers.

What PTX says is said again there, so a test of a kernel here is one of its algorithm: which lane takes what, who waits for
whom, where sums go. That a GPU does the same is `tests/gpu`.
"""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from inferoptim.hardware.measure_cpu import find_compiler
from inferoptim.kernels.cuda import compile as compiler
from inferoptim.kernels.cuda import tensor_map

_HERE = Path(__file__).parent


def use_cpu(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """From now on kernels are compiled into `folder` and run on the CPU."""
    kernels: dict[str, Any] = {}

    def load(
        source: Path, name: str, defines: dict[str, int], device: torch.device, *, shared_bytes: int = 0,
        own_architecture: bool = False,
    ) -> Any:  # fmt: skip
        key = f"{source}{name}{sorted(defines.items())}"
        if key not in kernels:
            library = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
            given = {
                **{k: str(v) for k, v in defines.items()},
                "KERNEL": name,
                "KERNEL_SOURCE": f'"{_renamed(source, folder)}"',
            }
            flags = ["-O1", "-std=c++17", "-shared", "-fPIC", "-w", f"-I{_HERE}", f"-I{source.parent}"]
            command = [str(find_compiler()), *flags, *(f"-D{k}={v}" for k, v in given.items())]
            subprocess.run([*command, str(_HERE / "run.cpp"), "-o", str(library)], check=True)
            kernels[key] = ctypes.CDLL(str(library)).run
        return kernels[key]

    def launch(
        function: Any, grid: tuple[int, int, int], threads: int, arguments: ctypes.Structure, device: torch.device, *,
        shared_bytes: int = 0, cluster: int = 1,
    ) -> None:  # fmt: skip
        assert function(ctypes.byref(arguments), *grid, threads, cluster, shared_bytes) == 0, (
            "threads wait for ever"
        )

    monkeypatch.setattr(compiler, "load", load)
    monkeypatch.setattr(compiler, "launch", launch)

    def encoded(
        address: int, dtype: torch.dtype, rows: int, columns: int, box_rows: int
    ) -> tensor_map.TensorMap:
        return tensor_map.TensorMap((ctypes.c_uint64 * 16)(address, columns, rows, box_rows))

    monkeypatch.setattr(compiler, "unsupported", lambda device, dtype: None)
    monkeypatch.setattr(compiler, "multiprocessors", lambda device: 4)
    monkeypatch.setattr(tensor_map, "_encoded", encoded)


def _renamed(source: Path, folder: Path) -> Path:
    """A copy under a C++ name, so that its quoted includes are looked for in this folder first."""
    copy = folder / f"{source.stem}.h"
    copy.write_text(source.read_text())
    return copy
