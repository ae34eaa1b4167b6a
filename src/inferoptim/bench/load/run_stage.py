"""One level of load, run to its end: an open loop that keeps its times, or a closed loop that keeps its concurrency."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from inferoptim.bench.load.arrivals import Level
from inferoptim.bench.load.client_health import LoopWatch
from inferoptim.bench.load.objectives import met
from inferoptim.records.load_schema import LoadRequestRecord, Objectives
from inferoptim.targets.openai_client import OpenAIClient
from inferoptim.targets.openai_stream import Call

LEAD_S = 0.02  # between the start of the clock and the first arrival: tasks are made, nothing is late yet


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What to send and when. Exactly one of `arrivals_s` and `concurrency` is set."""

    name: str
    shape: str  # in words
    messages: Sequence[bytes]  # whole HTTP requests; taken in order, from the beginning again when used up
    arrivals_s: NDArray[np.float64] | None = None
    offered_per_s: float | None = None
    concurrency: Level | None = None
    duration_s: float | None = None  # closed loop: no new request after it
    num_requests: int | None = None  # closed loop: stop after so many
    first_message: int = 0


@dataclass(slots=True)
class Live:
    """Counters that a progress display reads while the stage runs; written only by the stage."""

    stage: str = ""
    planned: int | None = None
    duration_s: float | None = None
    started_s: float = 0.0
    sent: int = 0
    done: int = 0
    failed: int = 0
    tokens: int = 0
    ttft_s: list[float] = field(default_factory=list)

    @property
    def in_flight(self) -> int:
        """Sent and not answered yet."""
        return self.sent - self.done


@dataclass(slots=True)
class StageResult:
    """What was seen."""

    records: list[LoadRequestRecord]
    watch: LoopWatch
    stopped_early: bool
    unfinished: int  # in flight when it was stopped


Hopeless = Callable[[LoadRequestRecord], bool]


async def run_stage(
    client: OpenAIClient,
    plan: StagePlan,
    objectives: Objectives,
    live: Live,
    stop: asyncio.Event,
    keep: Callable[[LoadRequestRecord], None],
    hopeless: Hopeless | None = None,
) -> StageResult:
    """Run one stage.

    Args:
        stop: set from outside (Ctrl-C): nothing more is sent, requests in flight are dropped.
        keep: gets each answer as it ends.
        hopeless: sees each answer once; True ends the stage as if stopped.
    """
    planned = len(plan.arrivals_s) if plan.arrivals_s is not None else plan.num_requests
    live.stage, live.planned, live.duration_s = plan.name, planned, plan.duration_s
    live.sent = live.done = live.failed = live.tokens = 0
    live.ttft_s = []
    records: list[LoadRequestRecord] = []
    halted = asyncio.Event()
    tasks: set[asyncio.Task[None]] = set()
    with LoopWatch() as watch:
        start = live.started_s = time.perf_counter() + LEAD_S

        async def send(number: int, due: float | None) -> None:
            live.sent += 1
            message = plan.messages[(plan.first_message + number) % len(plan.messages)]
            call = await client.call(message)
            record = record_of(plan.name, number, call, due, start, objectives)
            records.append(record)
            keep(record)
            live.done += 1
            if record.error is not None:
                live.failed += 1
            live.tokens += record.output_tokens or 0
            if record.first_token_s is not None:
                live.ttft_s.append(record.first_token_s - record.arrival_s)
            if hopeless is not None and hopeless(record):
                halted.set()

        async def open_loop(arrivals: NDArray[np.float64]) -> None:
            for number, offset in enumerate(arrivals.tolist()):
                due = start + offset
                while (delay := due - time.perf_counter()) > 0:  # uvloop may wake half a millisecond early
                    await asyncio.sleep(delay)
                task = asyncio.get_running_loop().create_task(send(number, due))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            while tasks:
                await asyncio.wait(set(tasks))

        async def closed_loop(level: Level) -> None:
            numbers = iter(range(plan.num_requests if plan.num_requests is not None else 1 << 60))
            end = start + plan.duration_s if plan.duration_s is not None else float("inf")

            async def worker(begin: float) -> None:
                await asyncio.sleep(max(0.0, begin - time.perf_counter()))
                while time.perf_counter() < end and (number := next(numbers, None)) is not None:
                    await send(number, None)

            begins = [
                start + _ramp_start(level, i, plan.duration_s)
                for i in range(int(max(level.first, level.last)))
            ]
            await asyncio.gather(*(worker(begin) for begin in begins))

        body = asyncio.ensure_future(
            open_loop(plan.arrivals_s)
            if plan.arrivals_s is not None
            else closed_loop(plan.concurrency or Level(1, 1))
        )
        waits = [asyncio.ensure_future(event.wait()) for event in (stop, halted)]
        try:
            await asyncio.wait([body, *waits], return_when=asyncio.FIRST_COMPLETED)
            early = not body.done()
            unfinished = live.in_flight if early else 0
            if body.done():
                body.result()  # a bug in the loop must not pass as an empty result
        finally:
            pending = [body, *waits, *tasks]
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
    return StageResult(records, watch, early, unfinished)


def _ramp_start(level: Level, index: int, duration_s: float | None) -> float:
    """When worker `index` joins: at once up to the first level, then evenly until the last is reached."""
    if index < level.first or duration_s is None or level.last <= level.first:
        return 0.0
    return (index + 1 - level.first) / (level.last - level.first) * duration_s * (1 - 1e-9)


def record_of(
    stage: str, number: int, call: Call, due: float | None, start: float, objectives: Objectives
) -> LoadRequestRecord:
    """What is kept of a request that has ended.

    Args:
        due: when an open loop should have sent it; None in a closed one.
        start: the stage's zero.
    """
    times = call.token_times_s if call.error is None else None
    record = LoadRequestRecord.model_construct(
        stage=stage,
        request_id=f"{stage}-{number}",
        arrival_s=(call.started_s if due is None else due) - start,
        started_s=call.started_s - start,
        sent_s=call.sent_s - start,
        first_token_s=None if call.first_token_s is None else call.first_token_s - start,
        finished_s=call.finished_s - start,
        token_times_s=None if times is None else tuple(t - start for t in times),
        prompt_tokens=call.prompt_tokens,
        cached_prompt_tokens=call.cached_prompt_tokens,
        output_tokens=call.output_tokens,
        finish_reason=call.finish_reason,
        status=call.status,
        error=call.error,
        error_detail=call.detail,
        met_slo=None,
    )
    verdict = met(record, objectives)
    return record if verdict is None else record.model_copy(update={"met_slo": verdict})
