"""A bench run priced: what `economics.json` holds beside the records, and the report renders. No torch.

Adapts records to the plain functions of `economics`; every figure carries its caveats, and what was not measured is None.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inferoptim.economics.attribution import Attribution, attribute, cost_index
from inferoptim.economics.claims import Evidence, examine_all
from inferoptim.economics.claims.page import claims_page
from inferoptim.economics.cost import GpuTimeSplit, Serving, TokenCost, split_gpu_time, token_cost
from inferoptim.errors import ConfigError, DataError
from inferoptim.records.reader import RunFolder, read_run
from inferoptim.records.schema import ConfigurationRecord, Interval, MetricSummary, RunRecord, Summary
from inferoptim.records.writer import write_atomic
from inferoptim.units import NOT_MEASURED

FEW_RUNS = 3  # below, an interval says little: every figure carries a caveat
FILE = "economics.json"
CLAIMS_FILE = "claims.html"


def economics_from_run(
    folder: str | Path, *, price_per_hour: float | None = None, currency: str | None = None
) -> dict[str, Any]:
    """Price a bench run.

    Args:
        folder: ``results/<run>``, with summary.json.
        price_per_hour: of the machine that was measured; default: the one stored with the run.

    Returns:
        Plain values: `price_per_hour` (None = not stated), `workloads` (a list: cost of each configuration, ladder,
        attribution), `attribution` of the busiest workload (what the report prints), `claims` of the guide that the
        run measured something about, and `caveats`.

    Raises:
        DataError: the folder holds no summarised run.
    """
    run = read_run(folder)
    if run.summary is None:
        raise DataError(
            f"{folder}: no summary.json: finish the run with `inferoptim bench --resume {folder}`"
        )
    summary = run.summary
    price = price_per_hour if price_per_hour is not None else summary.price_per_hour
    money = (currency or summary.currency).upper()
    splits = gpu_time_splits(run)
    names = list(dict.fromkeys(m.workload for m in summary.metrics))
    workloads = [_workload(run, summary, name, price, money, splits) for name in names]
    busiest = max(workloads, key=lambda w: w["concurrency"] or 0, default=None)
    caveats = [] if price else ["no price per hour was stated: costs are not computed, indices are"]
    return {
        "schema_version": 1,
        "price_per_hour": price,
        "currency": money,
        "price_source": summary.price_source if price_per_hour is None else "stated",
        "workloads": workloads,
        "attribution": busiest["attribution"] if busiest else [],
        "attribution_workload": busiest["workload"] if busiest else None,
        "claims": [row for row in examined(run) if row["measured_here"] != NOT_MEASURED],
        "caveats": caveats,
    }


def write_economics(folder: str | Path, **options: Any) -> Path:
    """Write ``economics.json`` and ``claims.html`` beside the records (each whole or not at all); the path of the first."""
    path = Path(folder) / FILE
    write_atomic(path, json.dumps(economics_from_run(folder, **options), indent=1, ensure_ascii=False) + "\n")
    run = read_run(folder)
    write_atomic(path.with_name(CLAIMS_FILE), claims_page(examined(run), run.path.name))
    return path


def examined(run: RunFolder) -> list[dict[str, Any]]:
    """Every claim of the guide judged, with what `run` measured beside it."""
    return examine_all(
        Evidence(
            summary=run.summary.model_dump(mode="json") if run.summary else None,
            environment=run.environment.model_dump(mode="json") if run.environment else None,
            run=run.path.name,
        )
    )


def gpu_time_splits(run: RunFolder) -> dict[tuple[str, int | None], GpuTimeSplit]:
    """GPU time of input and output tokens, by (configuration, concurrency), where runs of different shapes tell it.

    The whole wall time counts as GPU time (the machine is paid while it waits); prompt tokens found in a prefix cache
    are left out where requests say so.
    """
    concurrency = {
        (m.config_id, m.workload): m.concurrency for m in (run.summary.metrics if run.summary else ())
    }
    cached: dict[tuple[str, str, int], int] = {}
    for request in run.requests:
        key = (request.config_id, request.workload, request.run_index)
        cached[key] = cached.get(key, 0) + request.cached_prompt_tokens
    seen: dict[tuple[str, int | None], list[tuple[float, float, float]]] = {}
    for (config_id, workload), runs in run.measured_runs().items():
        for record in runs:
            if record.num_failed or record.wall_s <= 0:
                continue
            hits = cached.get((config_id, workload, record.run_index), 0)
            shape = (float(record.prompt_tokens - hits), float(record.output_tokens), record.wall_s)
            seen.setdefault((config_id, concurrency.get((config_id, workload))), []).append(shape)
    found = {key: split_gpu_time(shapes) for key, shapes in seen.items()}
    return {key: split for key, split in found.items() if split is not None}


def caveats_of(config: ConfigurationRecord, metric: MetricSummary | None, summary: Summary) -> list[str]:
    """What a reader must see beside any price of this configuration."""
    found = []
    if config.status != "ok":
        found.append(f"{config.status.replace('_', ' ')}: {config.error or 'no reason recorded'}")
    failed = [q.kind for q in summary.quality if q.config_id == config.config_id and not q.passed]
    if failed and config.status != "failed_quality":
        found.append(f"failed quality ({', '.join(failed)}): the output is not what the baseline gives")
    if metric is not None and 0 < metric.runs < FEW_RUNS:
        found.append(f"rests on {metric.runs} run{'s' if metric.runs > 1 else ''}: no useful interval")
    return found


def rate_despite_failure(runs: list[RunRecord]) -> Interval | None:
    """Throughput straight from the run records, for a configuration that failed its gate: never without its caveat."""
    rates = sorted(r.output_tokens / r.wall_s for r in runs if r.wall_s > 0 and r.output_tokens > 0)
    if not rates:
        return None
    middle = sum(r.output_tokens for r in runs) / sum(r.wall_s for r in runs)
    return Interval(value=middle, low=rates[0], high=rates[-1], confidence=0.0, n=len(rates))


def _workload(
    run: RunFolder,
    summary: Summary,
    name: str,
    price: float | None,
    currency: str,
    splits: Mapping[tuple[str, int | None], GpuTimeSplit],
) -> dict[str, Any]:
    by_id = {c.config_id: c for c in summary.configurations}
    measured = run.measured_runs()
    rows = []
    rates: dict[str, float] = {}
    concurrency: int | None = None
    for metric in summary.metrics:
        if metric.workload != name or metric.config_id not in by_id:
            continue
        concurrency = metric.concurrency if concurrency is None else concurrency
        config = by_id[metric.config_id]
        notes = caveats_of(config, metric, summary)
        row: dict[str, Any] = {"config_id": config.config_id, "label": config.label, "caveats": notes}
        rate = metric.output_tokens_per_s
        if rate is not None and rate.value > 0 and price:
            cost = cost_of(metric, measured.get((config.config_id, name), []), price, currency, splits)
            row["cost"] = cost.as_dict()
            row["per_million_output"] = per_million_interval(rate, cost).model_dump()
            notes.extend(cost.caveats)
        if (
            rate is not None
            and rate.value > 0
            and config.status == "ok"
            and not _failed_quality(config, summary)
        ):
            rates[config.config_id] = rate.value
        row["index"] = metric.cost_index.model_dump() if metric.cost_index else None
        rows.append(row)
    return {
        "workload": name,
        "concurrency": concurrency,
        "configurations": rows,
        "ladder": _ladder(summary, rates),
        "attribution": _attributions(summary, rates),
    }


def _failed_quality(config: ConfigurationRecord, summary: Summary) -> bool:
    return any(q.config_id == config.config_id and not q.passed for q in summary.quality)


def cost_of(
    metric: MetricSummary,
    runs: list[RunRecord],
    price: float,
    currency: str,
    splits: Mapping[tuple[str, int | None], GpuTimeSplit],
    **options: Any,
) -> TokenCost:
    """Token cost of one measured configuration; `options` are further fields of `Serving` (utilisation, goodput, …)."""
    assert metric.output_tokens_per_s is not None
    tokens = tokens_per_request(runs)
    shape: dict[str, Any] = {}
    if tokens:
        shape = {"input_tokens_per_request": tokens[0] or None, "output_tokens_per_request": tokens[1]}
    fields: dict[str, Any] = {
        "price_per_hour": price,
        "currency": currency,
        "output_tokens_per_s": metric.output_tokens_per_s.value,
        "split": splits.get((metric.config_id, metric.concurrency)),
        "energy_j_per_token": metric.energy_j_per_token.value if metric.energy_j_per_token else None,
        **shape,
    }
    return token_cost(Serving(**{**fields, **{k: v for k, v in options.items() if v is not None}}))


def tokens_per_request(runs: list[RunRecord]) -> tuple[float, float] | None:
    """Mean (prompt, output) tokens of a request over `runs`; None where nothing was produced."""
    requests, outputs = sum(r.num_requests for r in runs), sum(r.output_tokens for r in runs)
    if not requests or not outputs:
        return None
    return sum(r.prompt_tokens for r in runs) / requests, outputs / requests


def per_million_interval(rate: Interval, cost: TokenCost) -> Interval:
    """The throughput's interval carried to money: cost falls with throughput, so the ends change places."""
    return Interval(
        value=cost.per_million_output,
        low=cost.per_million_output * rate.value / rate.high,
        high=cost.per_million_output * rate.value / rate.low if rate.low > 0 else cost.per_million_output,
        confidence=rate.confidence,
        n=rate.n,
    )


def _ladder(summary: Summary, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """Cumulative index along the longest chain of rungs; those that failed are left out."""
    by_id = {c.config_id: c for c in summary.configurations}
    chain: list[ConfigurationRecord] = []
    for last in summary.configurations:
        walked = [last]
        while (below := by_id.get(walked[-1].previous or "")) is not None and below not in walked:
            walked.append(below)
        if last.config_id in rates and len(walked) > len(chain):
            chain = walked
    start = next((i for i, c in enumerate(chain) if c.is_baseline), len(chain) - 1)
    rungs = [
        (c.label, 1.0 / rates[c.config_id]) for c in reversed(chain[: start + 1]) if c.config_id in rates
    ]
    if len(rungs) < 2:
        return []
    return [{name: getattr(r, name) for name in r.__dataclass_fields__} for r in cost_index(rungs)]


def _attributions(summary: Summary, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """Ladder, one-at-a-time, leave-one-out and Shapley over the engine's own lever sets; points against engine-off."""
    costs = {
        frozenset(c.levers): 1.0 / rates[c.config_id]
        for c in summary.configurations
        if c.target == "engine" and c.config_id in rates
    }
    if frozenset() not in costs or len(costs) < 2:
        return []
    base = costs[frozenset()]
    by_id = {c.config_id: c for c in summary.configurations}
    steps: dict[str, float] = {}
    for config in summary.configurations:
        below = by_id.get(config.previous or "")
        if config.added_lever and below and config.config_id in rates and below.config_id in rates:
            steps[config.added_lever] = (
                (1 / rates[below.config_id] - 1 / rates[config.config_id]) / base * 100.0
            )
    found = [
        Attribution(
            "ladder",
            steps or None,
            note="each lever at the rung where it was added: another order splits otherwise",
        )
    ]
    top = max(costs, key=len)
    try:
        found += attribute({levers: cost for levers, cost in costs.items() if levers <= top})
    except ConfigError:
        return [_plain(found[0])]
    return [_plain(a) for a in found]


def _plain(attribution: Attribution) -> dict[str, Any]:
    return {
        "method": attribution.method,
        "points": dict(attribution.points) if attribution.points is not None else None,
        "missing": [sorted(m) for m in attribution.missing],
        "note": attribution.note if attribution.points is not None else attribution.explain(),
    }
