"""A worker of the native step's pool that wakes between two phases stays for the rest of the step."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from inferoptim.hardware.measure_cpu import find_compiler
from inferoptim.kernels.cpu import build


def test_a_worker_that_wakes_between_two_phases_works_in_all_that_follow(tmp_path: Path) -> None:
    """It once went back to sleep when it found no task to claim, and one step in five ran on one thread of two."""
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("no C++ compiler")
    source, program = Path(__file__).with_name("pool_wakes.cpp"), tmp_path / "pool_wakes"
    sources = Path(build.__file__).parent
    command = [compiler, "-std=c++17", "-O1", "-pthread", f"-I{sources}", str(source), "-o", str(program)]
    subprocess.run(command, check=True, timeout=120)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=True, timeout=60)
    # three steps of six phases; in the first phase the worker is called while there is nothing left to claim
    assert done.stdout.split() == ["5", "5", "5"]
