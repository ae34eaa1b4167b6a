"""KV-cache over time: which two configurations to set side by side, and how much of what they held was live."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inferoptim.records.schema import TelemetrySample
from inferoptim.report.facts import Case, Facts, Rung


@dataclass(frozen=True)
class KvSeries:
    """One run of one configuration, sampled. Tokens; times in seconds since the run's start, ascending."""

    rung: Rung
    run_index: int
    times: tuple[float, ...]
    used: tuple[int, ...]
    reserved: tuple[int, ...]
    capacity: int | None
    live_share: float | None  # of the tokens' worth held, the share that was live: over all runs, by sample


def contiguous_and_paged(facts: Facts, case: Case) -> tuple[KvSeries, ...]:
    """The rung that adds paged KV and the one below it; else the last contiguous and the first paged one measured."""
    measured = [s for rung in case.rungs if (s := _series(facts, case, rung))]
    paged = [s for s in measured if "paged_kv" in s.rung.config.levers]
    contiguous = [s for s in measured if "paged_kv" not in s.rung.config.levers]
    for series in paged:
        if series.rung.config.added_lever == "paged_kv":
            below = [s for s in contiguous if s.rung.id == series.rung.config.previous]
            return ((below or contiguous[-1:])[0], series) if contiguous else (series,)
    return (*contiguous[-1:], *paged[:1])


def _series(facts: Facts, case: Case, rung: Rung) -> KvSeries | None:
    """The first measured run that was sampled at least twice."""
    runs = {
        key[2]: _samples(samples)
        for key, samples in facts.telemetry.items()
        if key[:2] == (rung.id, case.name)
    }
    index = min((i for i, samples in runs.items() if len(samples) >= 2), default=None)
    if index is None:
        return None
    held = sum(reserved for samples in runs.values() for _, _, reserved in samples)
    live = sum(used for samples in runs.values() for _, used, _ in samples)
    times, used, reserved = zip(*runs[index], strict=True)
    return KvSeries(
        rung, index, times, used, reserved, rung.config.kv_capacity_tokens, live / held if held else None
    )


def _samples(samples: Sequence[TelemetrySample]) -> list[tuple[float, int, int]]:
    """(time, live, held) of the samples that have a KV meter, in time order."""
    return sorted(
        (max(s.time_s, 0.0), s.kv_used_tokens, s.kv_reserved_tokens)
        for s in samples
        if s.kv_used_tokens is not None and s.kv_reserved_tokens is not None
    )
