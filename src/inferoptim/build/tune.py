"""The tuner: engine settings tried on this machine within a time budget, one after the other, the better one kept.

What is searched: the token budget of a step (the chunk size), the block size of the KV-cache, on a CPU the threads, on a
GPU the most sequences of a step (the top of the ladder of captured graphs). What is not: the shapes of kernels and how many
parts attention splits a context into; the kernels choose both from the shapes of a step, the engine has no setting for them.
Found settings are remembered by machine, software and model shape. Trials run in a process of their own, which is ended when
the budget is: neither a slow load nor a setting that crashes can overrun it or take the build with it.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from inferoptim.build.artefact import Tuning
from inferoptim.build.speed import from_process, timed_runs
from inferoptim.hardware.cpu import usable_cores
from inferoptim.models.cache import cache_root
from inferoptim.models.load import read_spec
from inferoptim.models.machine import machine
from inferoptim.records.writer import write_atomic

_RUNS = 2  # of a trial, the better counts: the first pays for what is lazy
Progress = Callable[[str, int, int], None]
Settings = dict[str, Any]
Space = Mapping[str, tuple[int, ...]]  # setting → values to try


@dataclass(frozen=True, slots=True)
class TuneRequest:
    """What to tune: a model folder, its settings so far, what it will be asked for, and the time to spend."""

    folder: Path
    engine: Mapping[str, Any]
    limits: Mapping[str, int]
    budget_s: float


def search_space(engine: Mapping[str, Any], *, cuda: bool, cores: int) -> Space:
    """Setting → values to try against the engine's default; what `engine` fixes already is not searched."""
    space: dict[str, tuple[int, ...]] = {
        "max_num_batched_tokens": (512, 1024, 4096),
        "block_size": (32, 64),
    }
    if cuda:
        space["max_num_seqs"] = (8, 16, 64, 128)
    else:
        fewer = {cores // 2, cores - 1} - {0, cores}
        space["num_threads"] = tuple(sorted(fewer, reverse=True))
    return {name: values for name, values in space.items() if name not in engine and values}


def tune(request: TuneRequest, progress: Progress | None = None, space: Space | None = None) -> Tuning:
    """Search within the budget; a remembered result costs nothing.

    Args:
        space: what to search; None = what this machine has.
    """
    if space is None:
        space = search_space(request.engine, cuda=torch.cuda.is_available(), cores=usable_cores())
    memory = _memory(request, space)
    if (remembered := _remembered(memory)) is not None:
        return remembered
    started = time.perf_counter()
    total = 1 + sum(map(len, space.values()))
    trials: list[tuple[Settings, float]] = []
    if progress:
        progress("tuning", 0, total)
    for trial in from_process(_search, request, space, budget_s=request.budget_s):
        trials.append(trial)
        if progress:
            progress("tuning", len(trials), total)
    best: Settings = max(trials, key=lambda trial: trial[1])[0] if trials else {}
    tuning = Tuning(
        machine=machine(),
        settings=best,
        trials=tuple({**settings, "output_tokens_per_s": round(rate, 1)} for settings, rate in trials),
        spent_s=round(time.perf_counter() - started, 2),
    )
    if trials:
        with suppress(OSError):  # an unwritable cache costs the next build its time again
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(memory, tuning.model_dump_json())
    return tuning


def _search(request: TuneRequest, space: Space, send: Connection) -> None:
    """One setting after the other, each beside the best so far; every trial is sent as it ends."""
    best: Settings = {}
    rate = _trial(request, best)
    send.send((best, rate))
    for name, values in space.items():
        base = best
        for value in values:
            settings = {**base, name: value}
            tried = _trial(request, settings)
            send.send((settings, tried))
            if tried > rate:
                best, rate = settings, tried
    send.close()


def _trial(request: TuneRequest, settings: Settings) -> float:
    """Output tokens per second of the better run."""
    gc.collect()  # what holds the last trial's engine in a cycle would hold a GPU's memory, too
    _, times = timed_runs(request.folder, {**request.engine, **settings}, request.limits, _RUNS)
    return max(tokens / seconds for tokens, seconds in times)


def _memory(request: TuneRequest, space: Space) -> Path:
    key = {
        "machine": machine(),
        "shape": asdict(read_spec(request.folder)),
        "engine": dict(request.engine),
        "limits": dict(request.limits),
        "search": space,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:24]
    return cache_root() / "tuning" / f"{digest}.json"


def _remembered(path: Path) -> Tuning | None:
    try:
        return Tuning.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        with suppress(OSError):
            os.unlink(path)  # absent, or damaged and of no use
        return None
