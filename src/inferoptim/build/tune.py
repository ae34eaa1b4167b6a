"""The tuner: engine settings tried on this machine within a time budget, one after the other, the better one kept.

What is searched: the token budget of a step (the chunk size), the block size of the KV-cache and, on a GPU, the most
sequences that a captured step takes. Found settings are remembered by machine, software and model shape.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from inferoptim.build.artefact import Tuning
from inferoptim.config import EngineConfig, SamplingParams
from inferoptim.engine.llm import LLM
from inferoptim.hardware.cpu import usable_cores
from inferoptim.kernels import cpu
from inferoptim.models.cache import cache_root
from inferoptim.models.load import read_spec
from inferoptim.records.writer import write_atomic

_SEARCH: dict[str, tuple[int, ...]] = {
    "max_num_batched_tokens": (2048, 512, 1024, 4096),
    "block_size": (16, 32, 64),
}
_RUNS = 2  # of a trial, the better counts: the first pays for what is lazy
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class TuneRequest:
    """What to tune: a model folder, its settings so far, what it will be asked for, and the time to spend."""

    folder: Path
    engine: Mapping[str, Any]
    limits: Mapping[str, int]
    budget_s: float


def machine() -> dict[str, str]:
    """What tuned settings hold for."""
    facts = {"torch": torch.__version__, "cores": str(usable_cores()), "processor": platform.machine()}
    if torch.cuda.is_available():
        facts["device"] = torch.cuda.get_device_name(0)
        facts["cuda"] = str(torch.version.cuda)
    else:
        facts["device"] = "cpu"
        facts["kernels"] = cpu.isa() or "torch"
    return facts


def tune(request: TuneRequest, progress: Progress | None = None) -> Tuning:
    """Search within the budget; a remembered result costs nothing.

    A trial starts only if it should end within the budget, by what the slowest one took so far; the first always runs.
    """
    remembered = _remembered(request)
    if remembered is not None:
        return remembered
    started = time.perf_counter()
    best: dict[str, Any] = {}
    trials: list[dict[str, Any]] = []
    slowest = 0.0
    rate = -1.0
    candidates = [("", 0)] + [(name, value) for name, values in _SEARCH.items() for value in values[1:]]
    for i, (name, value) in enumerate(candidates):
        left = request.budget_s - (time.perf_counter() - started)
        if trials and slowest > left:
            break
        if progress:
            progress("tuning", i, len(candidates))
        settings = {**best, name: value} if name else {}
        begun = time.perf_counter()
        tried = _trial(request, settings)
        slowest = max(slowest, time.perf_counter() - begun)
        trials.append({**settings, "output_tokens_per_s": round(tried, 1)})
        if tried > rate:
            rate, best = tried, settings
    tuning = Tuning(
        machine=machine(),
        settings=best,
        trials=tuple(trials),
        spent_s=round(time.perf_counter() - started, 2),
    )
    with suppress(OSError):  # an unwritable cache costs the next build its time again
        path = _memory(request)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, tuning.model_dump_json())
    return tuning


def _trial(request: TuneRequest, settings: Mapping[str, Any]) -> float:
    """Output tokens per second on random prompts of the sizes asked for, made small enough for a trial."""
    fields = {**request.engine, **settings, "prefix_caching": False}
    llm = LLM(EngineConfig.create(model=str(request.folder), **fields))
    longest = llm.config.max_model_len or llm.core.spec.max_position
    prompt = min(request.limits.get("max_input_len", 128), 512, longest // 2)
    output = min(request.limits.get("max_output_len", 32), 32, longest - prompt)
    count = min(request.limits.get("max_batch_size", 8), 16)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, llm.core.spec.vocab_size, (count, prompt), generator=generator).tolist()
    sampling = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)
    times = []
    for _ in range(_RUNS):
        begun = time.perf_counter()
        llm.generate(ids, sampling)
        times.append(time.perf_counter() - begun)
    return count * output / min(times)


def _memory(request: TuneRequest) -> Path:
    key = {
        "machine": machine(),
        "shape": asdict(read_spec(request.folder)),
        "engine": dict(request.engine),
        "limits": dict(request.limits),
        "search": _SEARCH,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:24]
    return cache_root() / "tuning" / f"{digest}.json"


def _remembered(request: TuneRequest) -> Tuning | None:
    path = _memory(request)
    try:
        return Tuning.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        with suppress(OSError):
            os.unlink(path)  # absent, or damaged and of no use
        return None
