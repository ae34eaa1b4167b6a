"""The pool of the native step: who takes which task, and a worker that wakes between two phases."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from inferoptim.hardware.measure_cpu import find_compiler
from inferoptim.kernels.cpu import build


def output_of(name: str, folder: Path) -> list[str]:
    """Lines that a program beside this file prints, compiled against the pool."""
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("no C++ compiler")
    source, program = Path(__file__).with_name(f"{name}.cpp"), folder / name
    sources = Path(build.__file__).parent
    command = [compiler, "-std=c++17", "-O1", "-pthread", f"-I{sources}", str(source), "-o", str(program)]
    subprocess.run(command, check=True, timeout=120)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.splitlines()


def test_a_worker_that_wakes_between_two_phases_works_in_all_that_follow(tmp_path: Path) -> None:
    """It once went back to sleep when it found no task to claim, and one step in five ran on one thread of two."""
    # three steps of six phases; in the first phase the worker is called while there is nothing left to claim
    assert output_of("pool_wakes", tmp_path) == ["5", "5", "5"]


def test_each_task_runs_once_its_own_thread_first_and_who_is_done_helps_from_the_end(tmp_path: Path) -> None:
    """A thread reads ahead in its own run of the next phase's tasks: it must get those, and a held one must not wait."""
    assert output_of("pool_shares", tmp_path) == ["0 wrong, waited", "held in 3: 0 1 2 5 4"]
