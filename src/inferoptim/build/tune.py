"""The tuner: settings tried on this machine within a time budget, the better ones kept where the gain is more than noise.

Two parts. First what shows in single steps (`tune_kernels`): how kernels cut their work, the KV split, block size and threads. Then
what only a run of the engine shows: the token budget of a step (the chunk size) and, on a GPU, the most sequences of a step (the
top of the ladder of captured graphs); a value is kept when its slowest run beats the fastest of what held before, twice, each time
in fresh engines. Found settings are remembered by machine, software and model shape. All of it runs in a process of its own, which
is ended when the budget is: neither a slow load nor a setting that crashes can overrun it or take the build with it.
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
from inferoptim.build.step_bench import Steps
from inferoptim.build.tune_kernels import EVERYWHERE, Question, Settings, questions, search
from inferoptim.hardware.cpu import usable_cores
from inferoptim.models.cache import cache_root
from inferoptim.models.load import read_spec
from inferoptim.models.machine import machine
from inferoptim.records.writer import write_atomic

_RUNS = 4  # of a trial; the first pays for what is lazy and does not count
Progress = Callable[[str, int, int], None]
Space = Mapping[str, tuple[int, ...]]  # setting → values to try


@dataclass(frozen=True, slots=True)
class TuneRequest:
    """What to tune: a model folder, its settings so far, what it will be asked for, and the time to spend."""

    folder: Path
    engine: Mapping[str, Any]
    limits: Mapping[str, int]
    budget_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What to search: by single steps, and by runs of the engine."""

    steps: tuple[Question, ...]
    runs: Space

    @property
    def trials(self) -> int:
        """Values to try; the engine's defaults count as one."""
        return sum(len(q.values) for q in self.steps) + 1 + sum(map(len, self.runs.values()))


def plan(request: TuneRequest, *, cuda: bool, cores: int) -> Plan:
    """What this machine has to choose; what the request's engine fixes already is not searched."""
    longest = min(request.engine.get("max_model_len", 1 << 30), read_spec(request.folder).max_position)
    runs: dict[str, tuple[int, ...]] = {"max_num_batched_tokens": (512, 1024, 4096)}
    if cuda:
        runs["max_num_seqs"] = (8, 16, 64, 128)
    return Plan(
        questions(request.engine, request.limits, cuda=cuda, cores=cores, longest=longest),
        {name: values for name, values in runs.items() if name not in request.engine},
    )


def tune(request: TuneRequest, progress: Progress | None = None, asked: Plan | None = None) -> Tuning:
    """Search within the budget; a remembered result costs nothing.

    Args:
        asked: what to search; None = all that this machine has to choose.
    """
    if asked is None:
        asked = plan(request, cuda=torch.cuda.is_available(), cores=usable_cores())
    memory = _memory(request, asked)
    if (remembered := _remembered(memory)) is not None:
        return remembered
    started = time.perf_counter()
    trials: list[dict[str, Any]] = []
    best: Settings = {}
    if progress:
        progress("tuning", 0, asked.trials)
    for trial, settings in from_process(_search, request, asked, budget_s=request.budget_s):
        trials.append(trial)
        best = settings
        if progress:
            progress("tuning", min(len(trials), asked.trials), asked.trials)
    tuning = Tuning(
        machine=machine(),
        settings=best,
        trials=tuple(trials),
        spent_s=round(time.perf_counter() - started, 2),
    )
    if trials:
        with suppress(OSError):  # an unwritable cache costs the next build its time again
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(memory, tuning.model_dump_json())
    return tuning


def _search(request: TuneRequest, asked: Plan, send: Connection) -> None:
    """Sends (what was seen of a value, the settings to keep so far) as each trial ends."""
    best: Settings = {}
    runs = dict(asked.runs)
    steps = Steps(request.folder, request.engine)
    if (reason := steps.why_not()) is None:
        for trial in search(asked.steps, steps.bench, best):
            best = trial.settings
            send.send((trial.record(), best))
    elif asked.steps:
        runs |= {q.name: q.values for q in asked.steps if q.name in EVERYWHERE}
        left = [q.name for q in asked.steps if q.name not in EVERYWHERE]
        send.send(({"not_searched": ", ".join(left), "why": reason}, best))
    del steps
    if runs:
        rates = _rates(request, best)
        send.send(({**best, "output_tokens_per_s": _middle(rates), "kept": True}, best))
        for name, values in runs.items():
            for value in values:
                settings = {**best, name: value}
                tried = _rates(request, settings)
                kept = min(tried) > max(rates) and min(_rates(request, settings)) > max(_rates(request, best))
                if kept:
                    best, rates = settings, tried
                send.send(({**settings, "output_tokens_per_s": _middle(tried), "kept": kept}, best))
    send.close()


def _rates(request: TuneRequest, settings: Settings) -> list[float]:
    """Output tokens per second of each run but the first."""
    gc.collect()  # what holds the last trial's engine in a cycle would hold a GPU's memory, too
    _, times = timed_runs(request.folder, {**request.engine, **settings}, request.limits, _RUNS)
    return [tokens / seconds for tokens, seconds in times[1:]]


def _middle(rates: list[float]) -> float:
    return round(sorted(rates)[len(rates) // 2], 1)


def _memory(request: TuneRequest, asked: Plan) -> Path:
    key = {
        "machine": machine(),
        "shape": asdict(read_spec(request.folder)),
        "engine": dict(request.engine),
        "limits": dict(request.limits),
        "search": asdict(asked),
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
