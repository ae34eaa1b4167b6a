"""What a start does when: parts of it in this process, in the one that rehearses, and in those that compile.

`python -m benchmarks.gpu.start FOLDER --timeline FILE` writes it; `python -m benchmarks.gpu.timeline FILE` prints it.
The product knows nothing of it: its functions are wrapped from outside, before the engine is made.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# modules in the order in which a start imports them, the heavy ones before those that bring them along
IMPORTS = (
    "numpy", "torch", "triton", "inferoptim.config", "inferoptim.models.load", "inferoptim.engine.core",
)  # fmt: skip
WITHOUT_TORCH = (("inferoptim.engine.opening", "", ("resolve_model", "_read_ahead")),)
WRAPPED = (  # module, class or "", functions
    ("inferoptim.engine.core", "", ("choose_device", "prepare_kernels", "check_gpu_memory", "load_target",
                                    "count_blocks", "make_runner", "return_freed_memory")),
    ("inferoptim.engine.loading", "", ("load_decoder", "_compile")),
    ("inferoptim.engine.assembly", "", ("allocate_kv_cache",)),
    ("inferoptim.models.load", "", ("_layer",)),
    ("inferoptim.engine.rehearsal", "Preparation", ("wait",)),
    ("inferoptim.engine.rehearsal", "", ("rehearse", "_name", "know_compiler", "launch_everything", "compile_side_by_side")),
    ("inferoptim.engine.cuda_runner", "CudaRunner", ("__init__", "capture")),
    ("inferoptim.engine.cuda_graphs", "GraphLadder", ("capture",)),
    ("inferoptim.kernels.cuda.compile", "", ("load", "_compiler_fails", "compile_source")),
    ("triton.runtime.build", "", ("_build",)),
    ("triton.runtime.jit", "JITFunction", ("_do_compile",)),
)  # fmt: skip


class Timeline:
    """Lines of JSON in a file that every process of a start appends to.

    Args:
        zero: time.time() that the line counts from.
    """

    def __init__(self, path: Path, zero: float) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._zero = zero
        self._main = os.getpid()
        self._depths = threading.local()

    @contextmanager
    def part(self, name: str, what: str = "") -> Iterator[None]:
        """Note what runs within; CPU seconds are the process's, or the thread's own where it is not the first."""
        first = threading.current_thread() is threading.main_thread()
        clock = time.process_time if first else time.thread_time
        began, cpu, faults = time.time(), clock(), _major_faults()
        depth = getattr(self._depths, "now", 0)
        self._depths.now = depth + 1
        try:
            yield
        finally:
            self._depths.now = depth
            who = "" if first and self._main == os.getpid() else "* " if self._main == os.getpid() else "| "
            row = {
                "name": name, "at": began - self._zero, "s": time.time() - began, "cpu_s": clock() - cpu,
                "faults": _major_faults() - faults, "pid": os.getpid(), "depth": depth, "who": who, "what": what,
            }  # fmt: skip
            os.write(self._file, json.dumps(row).encode() + b"\n")

    def wrap(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The function, noted."""

        @functools.wraps(function)
        def noted(*args: Any, **kwargs: Any) -> Any:
            called, what = name, ""
            if name == "JITFunction._do_compile":
                called, what = f"compile {args[0].__name__}", str(args[2:])
            with self.part(called, what):
                return function(*args, **kwargs)

        return noted

    def wrap_all(self, parts: Sequence[tuple[str, str, tuple[str, ...]]]) -> None:
        """Wrap functions of modules and classes, where they are."""
        for module, owner, names in parts:
            holder: Any = importlib.import_module(module)
            holder = getattr(holder, owner) if owner else holder
            for name in names:
                function = getattr(holder, name)
                if name == "compile_side_by_side":
                    function = self.jobs(function)
                setattr(holder, name, self.wrap(function, f"{owner}.{name}" if owner else name))

    def imports(self) -> None:
        """Import what a start imports, part by part, and wrap the rest."""
        for module in IMPORTS:
            with self.part(f"import {module}"):
                importlib.import_module(module)
        self.wrap_all(WRAPPED)

    def jobs(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`compile_side_by_side` with each of its jobs noted."""

        def noted(jobs: Sequence[Any], *args: Any) -> Any:
            return function([job._replace(run=self.wrap(job.run, job.name)) for job in jobs], *args)

        return noted


def begin(path: Path, zero: float) -> Timeline:
    """Before anything brings torch; `Timeline.imports` is due then."""
    line = Timeline(path, zero)
    with line.part("python itself"):
        pass
    line.wrap_all(WITHOUT_TORCH)
    return line


def _major_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def table(rows: Sequence[dict[str, Any]], least_s: float = 0.02) -> str:
    """The parts by their beginning: * in another thread, | in another process. Many of one name become one line."""
    kept: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row["at"]):
        key = (row["pid"], row["who"], row["name"], row["depth"])
        if key in kept:
            held = kept[key]
            held.update(
                {name: held[name] + row[name] for name in ("s", "cpu_s", "faults")}, times=held["times"] + 1
            )
        else:
            kept[key] = {**row, "times": 1}
    lines = ["    from      for      CPU   faults"]
    for row in kept.values():
        if row["s"] < least_s:
            continue
        times = f" x{row['times']}" if row["times"] > 1 else ""
        lines.append(
            f"{row['at']:8.3f} {row['s']:8.3f} {row['cpu_s']:8.3f} {row['faults']:8d}  {row['who']}{'  ' * row['depth']}{row['name']}{times}"
        )
    return "\n".join(lines)


def main() -> None:
    for path in sys.argv[1:]:
        print(table([json.loads(line) for line in Path(path).read_text().splitlines()]))


if __name__ == "__main__":
    main()
