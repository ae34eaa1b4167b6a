"""Goodput for pricing: from the requests of a bench under stated objectives, and from a load test's own record. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from inferoptim.errors import ConfigError
from inferoptim.records.load_schema import LoadStage, LoadSummary, Objectives
from inferoptim.records.reader import RunFolder
from inferoptim.records.schema import Interval, RequestRecord
from inferoptim.records.statistics import rate_interval
from inferoptim.report.load_page import read_load

Judge = Callable[[RequestRecord], bool]


def describe(objectives: Objectives) -> str:
    """'ttft ≤ 500 ms, tpot ≤ 40 ms'."""
    names = ("ttft_s", "tpot_s", "itl_s", "e2e_s")
    bounds = [(name[:-2], value) for name in names if (value := getattr(objectives, name)) is not None]
    return ", ".join(
        f"{name} ≤ {value * 1e3:g} ms" if value < 1 else f"{name} ≤ {value:g} s" for name, value in bounds
    )


def bench_goodput(
    run: RunFolder, config_id: str, workload: str, judge: Judge, *, streamed: bool
) -> Interval | None:
    """Requests/s that met the objectives, resampled by run; None where the records cannot say.

    Args:
        judge: did a request meet them?
        streamed: an objective needs the time of the first token, which a target that does not stream never shows.
    """
    runs = run.measured_runs().get((config_id, workload), [])
    requests = run.requests_by_run().get((config_id, workload), {})
    kept = [r for r in runs if r.wall_s > 0 and requests.get(r.run_index)]
    if not kept:
        return None
    if streamed and all(q.first_token_s is None for r in kept for q in requests[r.run_index]):
        return None
    good = [float(sum(judge(q) for q in requests[r.run_index])) for r in kept]
    return rate_interval(good, [r.wall_s for r in kept], key=f"goodput/{config_id}/{workload}")


@dataclass(frozen=True, slots=True)
class LoadPoint:
    """One level of load that can be priced. `goodput_per_s` None: no objective was stated."""

    name: str
    output_tokens_per_s: float
    input_tokens: float | None
    output_tokens: float
    goodput_per_s: float | None
    slo: str
    cache_hit: float | None
    caveats: tuple[str, ...]


def load_points(folder: Path) -> list[LoadPoint]:
    """What a load test says about cost: the highest rate that met the objectives if it looked for it, else every stage.

    Raises:
        DataError: load.json cannot be read.
        ConfigError: no stage of it answered anything, or no rate met the objectives.
    """
    summary, _ = read_load(folder)
    stages = [s for s in summary.stages if s.requests_per_s and s.output_tokens_per_s]
    found = summary.max_rate
    if found is not None:
        if found.highest_passed_per_s is None:
            raise ConfigError(
                f"{folder}: no rate met {describe(summary.objectives)}: there is no cost at that level"
            )
        stages = [s for s in stages if s.offered_per_s == found.highest_passed_per_s][-1:]
    points = [_point(stage, summary) for stage in stages if stage.goodput_per_s != 0]
    if not points:
        raise ConfigError(
            f"{folder}: no stage there can be priced (nothing answered, or nothing met the objectives)"
        )
    return points


def _point(stage: LoadStage, summary: LoadSummary) -> LoadPoint:
    assert stage.output_tokens_per_s is not None
    assert stage.requests_per_s is not None
    caveats = ["one stage: no interval"]
    if not stage.client.valid:
        caveats.append("the client did not keep up: " + "; ".join(stage.client.reasons))
    if summary.interrupted:
        caveats.append("the load test was interrupted")
    if stage.errors:
        caveats.append(
            "failed requests: " + ", ".join(f"{count} {name}" for name, count in stage.errors.items())
        )
    prompt = stage.prompt_tokens_per_s
    return LoadPoint(
        name=stage.shape,
        output_tokens_per_s=stage.output_tokens_per_s,
        input_tokens=prompt / stage.requests_per_s if prompt else None,
        output_tokens=stage.output_tokens_per_s / stage.requests_per_s,
        goodput_per_s=stage.goodput_per_s,
        slo=describe(summary.objectives),
        cache_hit=stage.cached_prompt_share,
        caveats=tuple(caveats),
    )
