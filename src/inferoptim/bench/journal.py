"""What a run knows of its configurations and runs. Every change is on disk before it is believed; `--resume` reads it back."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from typing import Any

from inferoptim.bench.cases import Case
from inferoptim.bench.levers import Configuration
from inferoptim.bench.schedule import Cell
from inferoptim.records.reader import RunFolder
from inferoptim.records.schema import ConfigurationRecord, RequestRecord, RunRecord, TelemetrySample
from inferoptim.records.writer import RunWriter


class Journal:
    """The state of a run, written as it changes. Owner: `Bench`; `Measuring` adds runs to it.

    Args:
        writer: of the results folder.
    """

    def __init__(self, writer: RunWriter) -> None:
        self.records: dict[str, ConfigurationRecord] = {}
        self.runs: dict[Cell, list[RunRecord]] = {}  # measured ones; warm-ups are on disk alone
        self.warnings: list[str] = []
        self.order = 0  # runs of any kind so far
        self._writer = writer
        self._warm: dict[Cell, int] = {}
        self._offset_s = 0.0
        self._started = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Since this process began; what an interrupted run took before does not count."""
        return time.monotonic() - self._started

    @property
    def clock_s(self) -> float:
        """Time of the whole run, across interruptions."""
        return self.elapsed_s + self._offset_s

    def take_up(self, earlier: RunFolder) -> None:
        """Go on where an interrupted run stopped."""
        self.records = dict(earlier.configurations)
        for run in earlier.runs:
            self.order = max(self.order, run.order_index + 1)
            self._offset_s = max(self._offset_s, run.started_at_s + run.wall_s)
            if not run.warmup:
                self.runs.setdefault((run.config_id, run.workload), []).append(run)

    def configuration(self, rung: Configuration, status: Any, error: str | None, **fields: Any) -> None:
        """Note a configuration as it stands now; `fields` are more of its record."""
        self._put(
            ConfigurationRecord(
                config_id=rung.config_id,
                label=rung.label,
                target=rung.target,
                levers=rung.levers,
                added_lever=rung.added_lever,
                previous=rung.previous,
                is_baseline=rung.is_baseline,
                status=status,
                error=error,
                **{"settings": dict(rung.settings), **fields},
            )
        )

    def mark(self, config_id: str, status: Any, error: str) -> None:
        """Another status of a configuration that is known."""
        self._put(self.records[config_id].model_copy(update={"status": status, "error": error}))

    def commit(
        self, config_id: str, case: Case, result: Any, started_at_s: float, *, warmup: bool
    ) -> RunRecord:
        """Write a run, its requests and its telemetry.

        Args:
            result: what the worker's `run` gave.
            started_at_s: on `clock_s`.
        """
        cell = (config_id, case.name)
        earlier = self.runs.setdefault(cell, [])
        warm = self._warm.get(cell, 0)
        run = RunRecord(
            config_id=config_id,
            workload=case.name,
            run_index=warm if warmup else len(earlier),
            warmup=warmup,
            order_index=self.order,
            started_at_s=round(started_at_s, 6),
            wall_s=result.wall_s,
            num_requests=len(result.responses),
            num_failed=0,
            prompt_tokens=case.prompt_tokens,
            output_tokens=sum(len(r.token_ids) for r in result.responses),
            peak_rss_bytes=result.peak_rss_bytes,
            cpu_s=result.cpu_s,
            energy_j=result.energy_j,
            counters=result.counters,
        )
        self.order += 1
        if warmup:
            self._warm[cell] = warm + 1
            self._writer.run(run)
        else:
            self._writer.run(run, _requests(run, case, result), _samples(run, result))
            earlier.append(run)
        return run

    def _put(self, record: ConfigurationRecord) -> None:
        self.records[record.config_id] = record
        self._writer.configuration(record)


def unequal_work(case: Case, result: Any, most: int | None) -> str | None:
    """Why this run is not the work that every configuration does; None when it is."""
    for request, response in zip(case.requests, result.responses, strict=True):
        if response.error:
            return f"{case.name}, request {request.request_id}: {response.error}"
        wanted = min(request.sampling.max_tokens, most or request.sampling.max_tokens)
        if len(response.token_ids) != wanted:
            return (
                f"{case.name}, request {request.request_id}: {len(response.token_ids)} tokens produced, {wanted} asked: "
                "not the work that the others do"
            )
    hits = result.counters.get("prefix_cache_hit_tokens", 0)
    if hits > case.shareable_tokens:
        return (
            f"{case.name}: {hits:.0f} prompt tokens came from the prefix cache, but the requests share only "
            f"{case.shareable_tokens}: the cache was warm from an earlier run"
        )
    return None


def _requests(run: RunRecord, case: Case, result: Any) -> Iterator[RequestRecord]:
    zero = result.started_s
    for request, response in zip(case.requests, result.responses, strict=True):
        sent = response.sent_s - zero
        times = response.token_times_s
        digest = hashlib.sha256(repr(tuple(response.token_ids)).encode()).hexdigest()
        yield RequestRecord(
            config_id=run.config_id,
            workload=run.workload,
            run_index=run.run_index,
            request_id=request.request_id,
            arrival_s=round(request.arrival_offset_s if case.open_loop else sent, 6),
            sent_s=round(sent, 6),
            first_token_s=round(times[0] - zero, 6) if times else None,
            finished_s=round(response.finished_s - zero, 6),
            token_times_s=tuple(round(t - zero, 6) for t in times) if times else None,
            prompt_tokens=len(request.prompt_token_ids),
            cached_prompt_tokens=response.num_cached_prompt_tokens,
            output_tokens=len(response.token_ids),
            output_sha256=digest,
        )


def _samples(run: RunRecord, result: Any) -> Iterator[TelemetrySample]:
    for sample in result.samples:
        yield TelemetrySample(
            config_id=run.config_id, workload=run.workload, run_index=run.run_index, **sample
        )
