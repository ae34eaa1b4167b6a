"""From the raw records of a results folder to `summary.json`: statistics, floors, indices, prices. No torch.

A pure function of the folder: the same records give the same summary, whenever it is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from inferoptim.bench.floors import Floor, Shape, Work, case_floor, decode_step_s
from inferoptim.bench.plan import BenchPlan, make_plan
from inferoptim.economics.cost import cost_per_million
from inferoptim.errors import DataError
from inferoptim.records import statistics as st
from inferoptim.records.reader import RunFolder, read_run
from inferoptim.records.schema import (
    Ceilings,
    ConfigurationRecord,
    Interval,
    MetricSummary,
    RequestRecord,
    RunRecord,
    Summary,
)
from inferoptim.records.writer import RunWriter

# The board's energy counter moves every tenth of a second or so: shorter measurements would be its steps, not energy.
MIN_ENERGY_S = 2.0
# Bits of NVML's clock event reasons under which a card runs slower than its clocks allow.
# Source: nvml.h, nvmlClocksEventReason*: software power cap, hardware slowdown, thermal (software, hardware), power brake.
HELD_BACK = {0x4: "power cap", 0x8: "slowdown", 0x20: "heat", 0x40: "heat", 0x80: "power brake"}


def build_summary(
    folder: RunFolder,
    plan: BenchPlan,
    concurrency: Mapping[str, int],
    protocol: Mapping[str, Any],
    warnings: Sequence[str] = (),
) -> Summary:
    """Summarise what the folder holds.

    Args:
        concurrency: of each case, in report order.
        protocol: how it was measured; stored as it is.
        warnings: what a reader must know, beyond what the report finds by itself.
    """
    broken = {q.config_id for q in folder.quality if not q.passed}
    configurations = tuple(
        config.model_copy(
            update={"status": "failed_quality", "error": config.error or _reason(folder, config.config_id)}
        )
        if config.status in ("ok", "not_run") and config.config_id in broken
        else config
        for config in folder.configurations.values()
    )
    baseline = next((c.config_id for c in configurations if c.is_baseline), "")
    runs, requests = folder.measured_runs(), folder.requests_by_run()
    environment = folder.environment
    shape = Shape.of(environment.model_shape) if environment else None
    ceilings = environment.ceilings if environment else Ceilings()
    valid = {c.config_id for c in configurations if c.status == "ok"}
    metrics = []
    finished = []
    for config in configurations:
        floors: dict[str, float] = {}
        for case, at_once in concurrency.items():
            of_case = runs.get((config.config_id, case), [])
            if config.config_id not in valid or not of_case:
                metrics.append(
                    MetricSummary(config_id=config.config_id, workload=case, concurrency=at_once, runs=0)
                )
                continue
            served = requests.get((config.config_id, case), {})
            floor = None
            if (
                shape is not None and config.target != "openai_http"
            ):  # another machine's floor is not known here
                floor = _floor(shape, config, ceilings, of_case, served, at_once)
                context = _mean_context(served)
                step = decode_step_s(shape, config, ceilings, at_once, context) if context else None
                if step is not None:
                    floors[str(at_once)] = step
            others = {
                name: runs[key]
                for name, key in (("baseline", (baseline, case)), ("previous", (config.previous or "", case)))
                if key[0] in valid and key in runs
            }
            metrics.append(_metric(config, case, at_once, of_case, served, others, floor, plan))
        finished.append(config.model_copy(update={"decode_floor_s": floors}) if floors else config)
    order = {c.config_id: i for i, c in enumerate(finished)}
    cases = {name: i for i, name in enumerate(concurrency)}
    return Summary(
        name=plan.name,
        baseline=baseline,
        price_per_hour=plan.price_per_hour,
        currency=plan.currency,
        price_source=plan.price_source,
        protocol=dict(protocol),
        configurations=tuple(finished),
        metrics=tuple(sorted(metrics, key=lambda m: (cases[m.workload], order[m.config_id]))),
        quality=tuple(folder.quality),
        warnings=(*warnings, *(held for held in [_held_back(folder)] if held and held not in warnings)),
    )


def _held_back(folder: RunFolder) -> str | None:
    """Whether the GPU's clocks were held back while something was measured, in one line."""
    seen = [s.gpu_throttle_reasons for s in folder.telemetry if s.gpu_throttle_reasons is not None]
    held = [reasons for reasons in seen if any(reasons & bit for bit in HELD_BACK)]
    if not held:
        return None
    why = dict.fromkeys(name for bit, name in HELD_BACK.items() if any(r & bit for r in held))
    share = len(held) / len(seen)
    return f"the GPU's clocks were held back ({', '.join(why)}) in {share:.0%} of the samples taken"


def summarise_again(
    path: Path,
    *,
    price_per_hour: float | None = None,
    currency: str | None = None,
    price_source: str | None = None,
) -> Summary:
    """Compute summary.json anew from the records of a folder; a price given replaces the one it had.

    Raises:
        DataError: no run there, or none that was summarised once.
        ConfigError: a price or currency that cannot be.
    """
    folder = read_run(path)
    if folder.summary is None:
        raise DataError(f"{path} has no summary.json: finish the run with `inferoptim bench --resume {path}`")
    earlier = folder.summary
    fields = {
        **folder.plan,
        "price_per_hour": earlier.price_per_hour,
        "currency": earlier.currency,
        "price_source": earlier.price_source,
    }
    if price_per_hour is not None:
        fields.update(price_per_hour=price_per_hour, price_source=price_source or "stated")
    if currency is not None:
        fields["currency"] = currency.upper()
    concurrency = {m.workload: m.concurrency or 1 for m in earlier.metrics}
    summary = build_summary(
        folder, make_plan(fields, str(path / "plan.json")), concurrency, earlier.protocol, earlier.warnings
    )
    RunWriter(path).summary(summary)
    return summary


def separation(numerator: Sequence[RunRecord], denominator: Sequence[RunRecord], key: str) -> Interval:
    """Ratio of two configurations' output rates on one case, with its interval."""
    return st.ratio_interval(_amounts(numerator), _amounts(denominator), key)


def _metric(
    config: ConfigurationRecord,
    case: str,
    concurrency: int,
    runs: Sequence[RunRecord],
    served: Mapping[int, Sequence[RequestRecord]],
    others: Mapping[str, Sequence[RunRecord]],
    floor: Floor | None,
    plan: BenchPlan,
) -> MetricSummary:
    key = f"{config.config_id}/{case}"
    tokens, walls = _amounts(runs)
    rate = st.rate_interval(tokens, walls, key)
    by_run = list(served.values())
    wall_s = sum(walls) / len(walls)
    energy = [(r.energy_j, float(r.output_tokens)) for r in runs if r.energy_j is not None]
    ratios = {name: separation(runs, found, f"{key}/{name}") for name, found in others.items()}
    index = None
    if "baseline" in others:  # cost goes with time per token, so the ratio stands upside down
        index = _scaled(separation(others["baseline"], runs, f"{key}/index"), 100.0)
    previous = ratios.get("previous")
    return MetricSummary(
        config_id=config.config_id,
        workload=case,
        concurrency=concurrency,
        runs=len(runs),
        output_tokens_per_s=rate,
        requests_per_s=st.rate_interval([float(r.num_requests) for r in runs], walls, key),
        ttft_s=_percentiles([[t for r in run if (t := st.ttft_s(r)) is not None] for run in by_run], key),
        tpot_s=_percentiles([[t for r in run if (t := st.tpot_s(r)) is not None] for run in by_run], key),
        itl_s=_percentiles([list(chain.from_iterable(st.itl_s(r) for r in run)) for run in by_run], key),
        e2e_s=_percentiles([[st.e2e_s(r) for r in run] for run in by_run], key),
        peak_rss_bytes=max((r.peak_rss_bytes for r in runs if r.peak_rss_bytes is not None), default=None),
        energy_j_per_token=st.rate_interval([e for e, _ in energy], [t for _, t in energy], f"{key}/energy")
        if energy and sum(walls) >= MIN_ENERGY_S
        else None,
        mbu=None if floor is None or floor.mbu_per_s is None else floor.mbu_per_s / wall_s,
        mfu=None if floor is None or floor.mfu_per_s is None else floor.mfu_per_s / wall_s,
        share_of_possible=None if floor is None or floor.seconds is None else floor.seconds / wall_s,
        floor_s=None if floor is None else floor.seconds,
        cost_per_million_output_tokens=None
        if plan.price_per_hour is None
        else _priced(rate, plan.price_per_hour),
        cost_index=index,
        speedup_vs_baseline=None if config.is_baseline else ratios.get("baseline"),
        speedup_vs_previous=previous,
        separated_from_previous=None if previous is None else st.separated(previous),
    )


def _floor(
    shape: Shape,
    config: ConfigurationRecord,
    ceilings: Ceilings,
    runs: Sequence[RunRecord],
    served: Mapping[int, Sequence[RequestRecord]],
    concurrency: int,
) -> Floor:
    """Of the mean run: prompt tokens that the prefix cache spared and proposals that were accepted are taken off."""
    first = served.get(runs[0].run_index, [])
    work = [Work(r.prompt_tokens - r.cached_prompt_tokens, r.prompt_tokens, r.output_tokens) for r in first]
    tokens = sum(r.output_tokens for r in runs)
    accepted = sum(r.counters.get("draft_accepted_tokens", 0.0) for r in runs)
    return case_floor(
        shape, config, ceilings, work, concurrency, (tokens - accepted) / tokens if tokens else 1.0
    )


def _mean_context(served: Mapping[int, Sequence[RequestRecord]]) -> float | None:
    found = [r.prompt_tokens + r.output_tokens / 2 for run in served.values() for r in run]
    return sum(found) / len(found) if found else None


def _amounts(runs: Sequence[RunRecord]) -> tuple[list[float], list[float]]:
    return [float(r.output_tokens) for r in runs], [r.wall_s for r in runs]


def _percentiles(values: Sequence[Sequence[float]], key: str) -> dict[str, Interval]:
    return st.percentile_intervals(values, key)


def _scaled(interval: Interval, factor: float) -> Interval:
    return interval.model_copy(
        update={
            "value": interval.value * factor,
            "low": interval.low * factor,
            "high": interval.high * factor,
        }
    )


def _priced(rate: Interval, price_per_hour: float) -> Interval:
    """Money per million output tokens; the ends change places, since cost falls as the rate rises."""
    return rate.model_copy(
        update={
            "value": cost_per_million(price_per_hour, rate.value),
            "low": cost_per_million(price_per_hour, rate.high),
            "high": cost_per_million(price_per_hour, rate.low),
        }
    )


def _reason(folder: RunFolder, config_id: str) -> str:
    return "; ".join(q.detail for q in folder.quality if q.config_id == config_id and not q.passed)
