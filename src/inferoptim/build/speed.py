"""How fast an engine configuration is here: a few timed runs on random prompts of the sizes asked for.

Runs in a process of its own, so that a second copy of the model, a crash or a slow load stays out of the build.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from inferoptim.build.artefact import Benchmark, BenchmarkRow
from inferoptim.config import EngineConfig, SamplingParams
from inferoptim.engine.llm import LLM
from inferoptim.errors import DataError
from inferoptim.models.machine import machine
from inferoptim.records.statistics import rate_interval

Run = tuple[int, float]  # output tokens, seconds


@dataclass(frozen=True, slots=True)
class Load:
    """The requests of a run, all sent at once: a number of them, of so many prompt and output tokens each."""

    requests: int
    prompt: int
    output: int

    def describe(self) -> str:
        return f"{self.requests} requests at once, {self.prompt} prompt and {self.output} output tokens each"


def timed_runs(
    folder: Path, engine: Mapping[str, Any], limits: Mapping[str, int], runs: int
) -> tuple[Load, list[Run]]:
    """Time `runs` passes, after none: whoever wants a warm-up drops the first.

    Args:
        engine: EngineConfig fields; prefix caching is switched off, since the prompts repeat.
        limits: max_batch_size, max_input_len, max_output_len; made small enough for a trial.
    """
    llm = LLM(EngineConfig.create(model=str(folder), **{**engine, "prefix_caching": False}))
    longest = llm.config.max_model_len or llm.core.spec.max_position
    prompt = min(limits.get("max_input_len", 128), 512, longest // 2)
    load = Load(
        requests=min(limits.get("max_batch_size", 8), 16),
        prompt=prompt,
        output=min(limits.get("max_output_len", 32), 32, longest - prompt),
    )
    generator = torch.Generator().manual_seed(0)
    shape = (load.requests, load.prompt)
    ids = torch.randint(0, llm.core.spec.vocab_size, shape, generator=generator).tolist()
    sampling = SamplingParams(max_tokens=load.output, temperature=0.0, ignore_eos=True)
    times: list[Run] = []
    for _ in range(runs):
        begun = time.perf_counter()
        llm.generate(ids, sampling)
        times.append((load.requests * load.output, time.perf_counter() - begun))
    return load, times


def from_process(target: Callable[..., None], *args: Any, budget_s: float | None = None) -> Iterator[Any]:
    """What `target(*args, connection)` sends from a new process, until it ends or the budget does; then it is killed."""
    started = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    worker = context.Process(target=target, args=(*args, send), daemon=True)
    worker.start()
    send.close()
    try:
        while True:
            left = None if budget_s is None else budget_s - (time.perf_counter() - started)
            if (left is not None and left <= 0) or not receive.poll(left):
                return
            yield receive.recv()
    except EOFError:
        return
    finally:
        worker.kill()
        worker.join()
        receive.close()


def measure_speed(folder: Path, engine: Mapping[str, Any], limits: Mapping[str, int], runs: int) -> Benchmark:
    """`runs` timed passes behind one warm-up.

    Raises:
        DataError: the engine did not get to the end of them.
    """
    sent = list(from_process(_measure, folder, dict(engine), dict(limits), runs + 1))
    if not sent:
        raise DataError(f"{folder}: the engine ended while its speed was measured; see its message above")
    load, times = sent[0]
    amounts, seconds = [float(n) for n, _ in times[1:]], [s for _, s in times[1:]]
    row = BenchmarkRow(
        configuration="as served",
        workload=load.describe(),
        output_tokens_per_s=rate_interval(amounts, seconds, "speed"),
    )
    return Benchmark(measured_by="build", machine=machine(), rows=(row,))


def _measure(
    folder: Path, engine: dict[str, Any], limits: dict[str, int], runs: int, send: Connection
) -> None:
    send.send(timed_runs(folder, engine, limits, runs))
