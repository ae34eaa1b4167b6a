"""A whole load test: find the server, prove the client, warm up, run the stages, keep each stage on disk as it ends."""

from __future__ import annotations

import asyncio
import platform
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

import numpy as np

from inferoptim import __version__
from inferoptim.bench.load.arrivals import Level, arrival_times, trace_times
from inferoptim.bench.load.max_rate import find_max_rate, min_requests
from inferoptim.bench.load.options import LoadOptions, plan_check
from inferoptim.bench.load.prompts import Prompts, build_prompts
from inferoptim.bench.load.rows import RowFile
from inferoptim.bench.load.run_stage import Hopeless, Live, StagePlan, run_stage
from inferoptim.bench.load.self_test import self_test
from inferoptim.bench.load.summary import summarise_stage
from inferoptim.config import SamplingParams
from inferoptim.errors import ConfigError
from inferoptim.hardware.cpu import cpu_facts
from inferoptim.records.load_schema import (
    LoadRequestRecord,
    LoadStage,
    LoadSummary,
    MaxRate,
    SelfTest,
)
from inferoptim.records.writer import write_atomic
from inferoptim.targets.openai_client import OpenAIClient

CLOSED_POOL = 2048  # prompts written for a closed loop of unknown length


class LoadSession:
    """Runs `options` once. `live` may be read at any time; `stages` grows as they end."""

    def __init__(self, options: LoadOptions, announce: Callable[[str], None] = lambda _: None) -> None:
        plan_check(options)
        self.options = options
        self.live = Live()
        self.stages: list[LoadStage] = []
        self.interrupted = False
        self._announce = announce
        self._stop: asyncio.Event | None = None
        self._sent = 0  # requests planned so far: later stages go on where earlier ones ended

    async def run(self) -> LoadSummary:
        """Run every stage and write load.json and requests.jsonl.

        Raises:
            ConfigError: the server cannot be reached, or refuses the key or the model.
            UnsupportedError: it answers no plain request.
        """
        options = self.options
        self._stop = asyncio.Event()
        started_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        client = OpenAIClient(options.endpoint, model=options.model, timeout_s=options.timeout_s)
        max_rate: MaxRate | None = None
        tested: SelfTest | None = None
        loop = asyncio.get_running_loop()
        rows = RowFile(
            options.out / "requests.jsonl", lambda: loop.call_soon_threadsafe(self._end_without_rows)
        )
        with rows, _interrupt(self._stop):
            try:
                await client.discover()
                await client.probe(options.api)
                prompts = build_prompts(options.workload, self._pool(), options.tokenizer)
                if options.run_self_test:
                    longest = sorted(p.max_tokens for p in prompts.prompts)[len(prompts.prompts) // 2]
                    tested = await self_test(prompts.prompts[0].text, longest)
                    self._announce(
                        f"self-test: this client reaches {tested.requests_per_s:,.0f} requests/s and "
                        f"{tested.output_tokens_per_s:,.0f} tokens/s against a server that answers at once"
                    )
                messages = [
                    client.message(p.text, self._sampling(p.max_tokens), client.features)
                    for p in prompts.prompts
                ]
                await self._warm_up(client, messages)
                if options.find_max:
                    max_rate = await find_max_rate(
                        lambda rate: self._probe(client, messages, tested, rate, rows),
                        options.objectives,
                        options.rates[0].first if options.rates else 1.0,
                        options.tolerance,
                    )
                else:
                    for plan in self._plans(messages):
                        if self._stop.is_set():
                            break
                        await self._stage(client, plan, tested, rows)
            finally:
                client.close()
            rows.finish()
        self.interrupted = self._stop.is_set()
        summary = self._summary(client, prompts, tested, max_rate, started_at)
        write_atomic(options.out / "load.json", summary.model_dump_json(indent=2) + "\n")
        return summary

    def _end_without_rows(self) -> None:
        """Send nothing more: what comes could not be kept."""
        assert self._stop is not None
        self._stop.set()

    def _pool(self) -> int:
        """Prompts that the run can need."""
        options = self.options
        if options.replay_arrivals:
            return min(options.num_requests or len(options.workload.requests), len(options.workload.requests))
        if options.find_max or (options.concurrencies and options.num_requests is None):
            return CLOSED_POOL
        if options.num_requests is not None:
            return options.num_requests * max(len(options.rates), len(options.concurrencies))
        return max(1, int(sum(level.mean for level in options.rates) * options.duration_s * 1.2) + 16)

    def _sampling(self, max_tokens: int) -> SamplingParams:
        return SamplingParams.create(
            max_tokens=max_tokens, temperature=self.options.temperature, ignore_eos=self.options.ignore_eos
        )

    async def _warm_up(self, client: OpenAIClient, messages: Sequence[bytes]) -> None:
        """The last prompts of the pool, one after another: their texts are the last to come again."""
        for message in list(messages[::-1])[: self.options.warmup]:
            call = await client.call(message)
            if call.error is not None and call.error != "empty":
                raise ConfigError(
                    f"{client.endpoint.url}: the warm-up request failed ({call.error}: {call.detail}); "
                    "shorten it with --input-tokens and --output-tokens, or see what the server says"
                )

    def _plans(self, messages: Sequence[bytes]) -> Iterator[StagePlan]:
        options = self.options
        if options.replay_arrivals:
            chosen = options.workload.requests[: options.num_requests]
            times = np.array([r.arrival_s for r in chosen])
            span = float(times[-1])
            rate = (len(times) - 1) / span if span > 0 else None
            name = options.workload.header.name
            shape = f"open, replay of {name}" + (f", {rate:.3g} requests/s" if rate else "")
            yield StagePlan("replay", shape, messages, times, rate)
        for number, level in enumerate(options.rates):
            yield self._open_plan(
                f"rate-{level}", level, number, messages, options.duration_s, options.num_requests
            )
        for level in options.concurrencies:
            plan = StagePlan(
                f"concurrency-{level}",
                f"closed, {level} at once",
                messages,
                concurrency=level,
                duration_s=None if options.num_requests is not None else options.duration_s,
                num_requests=options.num_requests,
                first_message=self._sent,
            )
            yield plan
            self._sent += self.stages[-1].requests if self.stages else 0

    def _open_plan(
        self,
        name: str,
        level: Level,
        number: int,
        messages: Sequence[bytes],
        duration_s: float,
        num_requests: int | None,
    ) -> StagePlan:
        options = self.options
        rng = np.random.default_rng([options.seed, 7, number])
        if num_requests is not None:
            duration_s = num_requests / level.mean
        if options.process == "trace":
            offsets = np.array([r.arrival_s for r in options.workload.requests])
            times = trace_times(offsets, level.mean, duration_s)
        else:
            times = arrival_times(level, duration_s, rng, options.process, options.burstiness)
        if num_requests is not None:
            times = times[:num_requests]
        if len(times) == 0:
            times = np.zeros(1)  # a rate so low that nothing was drawn: one request says more than none
        words = {
            "poisson": "Poisson",
            "gamma": f"gamma (variation {options.burstiness:g})",
            "trace": "the trace's rhythm",
            "constant": "constant",
        }
        plan = StagePlan(
            name,
            f"open, {words[options.process]}, {level} requests/s",
            messages,
            times,
            level.mean,
            duration_s=duration_s,
            first_message=self._sent,
        )
        self._sent += len(times)
        return plan

    async def _probe(
        self,
        client: OpenAIClient,
        messages: Sequence[bytes],
        tested: SelfTest | None,
        rate: float,
        rows: RowFile,
    ) -> LoadStage | None:
        options = self.options
        least = min_requests(options.objectives.attainment)
        duration = max(options.duration_s, least / rate)
        number = len(self.stages)
        plan = self._open_plan(f"probe-{number + 1}", Level(rate, rate), number, messages, duration, None)
        assert plan.arrivals_s is not None
        allowed = (1 - options.objectives.attainment) * len(plan.arrivals_s)
        stage = await self._stage(client, plan, tested, rows, _too_many_misses(allowed))
        assert self._stop is not None
        return None if self._stop.is_set() else stage

    async def _stage(
        self,
        client: OpenAIClient,
        plan: StagePlan,
        tested: SelfTest | None,
        rows: RowFile,
        hopeless: Hopeless | None = None,
    ) -> LoadStage:
        assert self._stop is not None
        result = await run_stage(
            client, plan, self.options.objectives, self.live, self._stop, rows.add, hopeless
        )
        stage = summarise_stage(plan, result, allowed_lag_s=self.options.allowed_lag_s, self_test=tested)
        self.stages.append(stage)
        return stage

    def _summary(
        self,
        client: OpenAIClient,
        prompts: Prompts,
        tested: SelfTest | None,
        max_rate: MaxRate | None,
        started_at: str,
    ) -> LoadSummary:
        options, facts = self.options, cpu_facts()
        notes = list(prompts.notes)
        if options.ignore_eos and not client.features.ignore_eos:
            notes.append(
                "the server refuses ignore_eos: answers end where the model ends them, so lengths vary"
            )
        if not client.features.continuous_usage and not client.features.return_token_ids:
            notes.append(
                "the server does not say how many tokens a chunk holds: where chunks and tokens differ in number, "
                "ITL is not measured"
            )
        return LoadSummary(
            url=options.endpoint.url,
            model=client.model,
            server_version=client.version,
            client_version=__version__,
            machine={
                "cpu": facts.model,
                "cores": facts.usable_cores,
                "system": platform.system(),
                "python": platform.python_version(),
                "event_loop": _loop_name(),
            },
            command=options.command,
            started_at=started_at,
            features=client.features.as_dict(),
            workload=prompts.description,
            objectives=options.objectives,
            seed=options.seed,
            warmup_requests=options.warmup,
            self_test=tested,
            stages=tuple(self.stages),
            max_rate=max_rate,
            interrupted=self.interrupted,
            notes=tuple(notes),
        )


def _too_many_misses(allowed: float) -> Hopeless:
    """True once more requests missed than the attainment allows: the rest of the probe cannot change its verdict."""
    missed = 0

    def hopeless(record: LoadRequestRecord) -> bool:
        nonlocal missed
        missed += record.met_slo is False
        return missed > allowed

    return hopeless


@contextmanager
def _interrupt(stop: asyncio.Event) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM stops sending and keeps what came; the second one is the usual."""
    loop = asyncio.get_running_loop()

    numbers = (signal.SIGINT, signal.SIGTERM)

    def first() -> None:
        stop.set()
        for number in numbers:
            loop.remove_signal_handler(number)

    try:
        for number in numbers:
            loop.add_signal_handler(number, first)
    except (NotImplementedError, RuntimeError, ValueError):  # not the main thread
        yield
        return
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _loop_name() -> str:
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]


def run_load(session: LoadSession, background: Callable[[], Any] | None = None) -> LoadSummary:
    """Run a session in an event loop of its own, on uvloop where it is installed.

    Args:
        background: makes a coroutine that runs beside it (the progress display) and is cancelled at the end.
    """

    async def both() -> LoadSummary:
        beside = asyncio.ensure_future(background()) if background is not None else None
        try:
            return await session.run()
        finally:
            if beside is not None:
                beside.cancel()
                await asyncio.gather(beside, return_exceptions=True)

    try:
        import uvloop
    except ImportError:
        return asyncio.run(both())
    result: LoadSummary = uvloop.run(both())
    return result
