"""What ``inferoptim cost`` prices and how it shows it: a record or typed numbers in, tables and JSON out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inferoptim.cli.money import Priced, Table, emit, parse_assignment, plus_minus
from inferoptim.errors import ConfigError

if TYPE_CHECKING:
    from inferoptim.economics.cost import TokenCost
    from inferoptim.economics.uncertainty import Range, Spread


@dataclass(frozen=True)
class Figure:
    """One priced configuration: its cost, the throughput it rests on (with its interval), what to say beside it."""

    config: str
    workload: str
    cost: TokenCost
    speed: float | Range
    caveats: tuple[str, ...] = ()
    goodput_per_s: float | None = None  # requests/s that met the objective, where one was stated


def typed(
    tokens_per_s: str,
    total: float,
    currency: str,
    gpu_s_in: float | None,
    gpu_s_out: float | None,
    options: dict[str, Any],
) -> Figure:
    """The cost of typed numbers."""
    from inferoptim.economics.checks import positive
    from inferoptim.economics.cost import GpuTimeSplit, Serving, token_cost
    from inferoptim.economics.uncertainty import Range, parse_range

    speed = parse_range("tokens_per_s", parse_assignment(f"tokens_per_s={tokens_per_s}")[1])
    middle = speed.mode if isinstance(speed, Range) else speed
    positive("tokens per second", speed.low if isinstance(speed, Range) else speed)
    split = None
    if (gpu_s_in is None) != (gpu_s_out is None):
        raise ConfigError("give both --gpu-s-per-m-input and --gpu-s-per-m-output, or neither")
    if gpu_s_in is not None and gpu_s_out is not None:
        split = GpuTimeSplit(gpu_s_in / 1e6, gpu_s_out / 1e6, "stated")
    stated = {name: value for name, value in options.items() if value is not None}
    serving = Serving(
        price_per_hour=total, currency=currency, output_tokens_per_s=middle, split=split, **stated
    )
    return Figure("stated", "", token_cost(serving), speed, goodput_per_s=serving.goodput_requests_per_s)


def from_load(folder: Path, total: float, currency: str, options: dict[str, Any]) -> list[Figure]:
    """The cost at the levels of a load test: its goodput where objectives were stated, its throughput elsewhere."""
    from inferoptim.economics.cost import Serving, token_cost
    from inferoptim.report.service_level import load_points

    if options.get("goodput_requests_per_s") or options.get("slo"):
        raise ConfigError(f"{folder}: a load test carries its own objectives; leave out --goodput and --slo")
    stated = {name: value for name, value in options.items() if value is not None}
    found = []
    for point in load_points(folder):
        measured: dict[str, Any] = {
            "output_tokens_per_s": point.output_tokens_per_s,
            "input_tokens_per_request": point.input_tokens,
            "output_tokens_per_request": point.output_tokens,
            "goodput_requests_per_s": point.goodput_per_s,
            "slo": point.slo,
        }
        serving = Serving(price_per_hour=total, currency=currency, **{**measured, **stated})
        found.append(
            Figure("load", point.name, token_cost(serving), point.output_tokens_per_s, point.caveats)
        )
    return found


def from_run(
    run: Path,
    config: str | None,
    workload: str | None,
    total: float,
    currency: str,
    options: dict[str, Any],
    slo: list[str],
) -> tuple[list[Figure], list[str]]:
    """The cost of each measured configuration of a run; with `slo`, at the goodput that its requests show.

    Also what has no cost there, and why.
    """
    from inferoptim.bench.load.objectives import met, parse_objectives
    from inferoptim.economics.uncertainty import Range
    from inferoptim.records.reader import read_run
    from inferoptim.report.economics_section import caveats_of, cost_of, gpu_time_splits, rate_despite_failure
    from inferoptim.report.service_level import bench_goodput, describe

    objectives = parse_objectives(slo) if slo and not options.get("goodput_requests_per_s") else None
    folder = read_run(run)
    summary = folder.summary
    if summary is None:
        raise ConfigError(
            f"{run}: the run has no summary.json yet: finish it with `inferoptim bench --resume {run}`"
        )
    configs = {c.config_id: c for c in summary.configurations}
    names = {m.workload for m in summary.metrics}
    for given, known, what in ((config, configs, "configuration"), (workload, names, "workload")):
        if given is not None and given not in known:
            raise ConfigError(f"{run}: no {what} {given!r}; it has {', '.join(sorted(known))}")
    splits, measured = gpu_time_splits(folder), folder.measured_runs()
    found: list[Figure] = []
    unpriced: list[str] = []
    for metric in summary.metrics:
        if (config and metric.config_id != config) or (workload and metric.workload != workload):
            continue
        runs = measured.get((metric.config_id, metric.workload), [])
        notes = caveats_of(configs[metric.config_id], metric, summary)
        rate = metric.output_tokens_per_s or (rate_despite_failure(runs) if config else None)
        if rate is None:
            continue
        row = metric.model_copy(update={"output_tokens_per_s": rate})
        stated = options
        if objectives is not None:
            needs_stream = any((objectives.ttft_s, objectives.tpot_s, objectives.itl_s))
            goodput = bench_goodput(
                folder,
                metric.config_id,
                metric.workload,
                lambda request: met(request, objectives) is True,
                streamed=needs_stream,
            )
            if goodput is None or goodput.value == 0:
                why = "not measured: it does not stream" if goodput is None else "no request met it"
                unpriced.append(f"{metric.config_id} on {metric.workload}: {why}")
                continue
            stated = {**options, "goodput_requests_per_s": goodput.value, "slo": describe(objectives)}
            rate = goodput
        priced = cost_of(row, runs, total, currency, splits, **stated)
        spread = (
            Range(rate.low, rate.value, rate.high, "measured") if 0 < rate.low < rate.high else rate.value
        )
        if rate.low <= 0:
            notes.append(
                "the interval of its rate reaches zero: the cost has no upper end, and no interval is printed"
            )
        goodput_per_s = stated.get("goodput_requests_per_s")
        found.append(Figure(metric.config_id, metric.workload, priced, spread, tuple(notes), goodput_per_s))
    if not found:
        reason = "; ".join(unpriced) or "failed configurations have no speed"
        raise ConfigError(f"{run}: nothing measured there can be priced ({reason})")
    return found, [f"no cost at this level for {text}" for text in unpriced]


def day_table(demand: str, found: list[Figure], gpus: int, headroom: float, priced: Priced) -> Table:
    """A day of traffic provisioned for the level that was priced: for its peak all day, and scaled every hour.

    Args:
        demand: 24 hourly requests/s separated by commas, or a file of them.
    """
    from inferoptim.economics.demand import demand_cost_per_million, provision

    served = [figure for figure in found if figure.goodput_per_s]
    if not served:
        raise ConfigError(
            "--demand needs a goodput (--goodput, or --slo with a run): a day is provisioned for a service level, not for "
            "peak throughput"
        )
    cheapest = min(served, key=lambda figure: figure.cost.per_million_output)
    goodput = cheapest.goodput_per_s or 0.0
    hours = _hours(demand)
    per_request = cheapest.cost.tokens_per_s_priced / goodput  # output tokens: goodput is in requests
    rows = []
    for day in provision(hours, goodput, gpus, headroom=headroom):
        tokens = sum(hours) * 3600 * per_request
        cost = demand_cost_per_million(day, priced.hour.total, tokens)
        rows.append(
            [day.policy, max(day.replicas), min(day.replicas), day.gpu_hours, f"{day.utilisation:.0%}", cost]
        )
    columns = [
        "provisioned for",
        "replicas, most",
        "least",
        "GPU-hours a day",
        "utilisation",
        f"{priced.hour.currency} per M output",
    ]
    name = f" · {cheapest.config} on {cheapest.workload}" if cheapest.workload else ""
    return Table(f"Over the day{name}", columns, rows)


def _hours(demand: str) -> list[float]:
    file = Path(demand)
    try:
        if "," not in demand and file.is_file():
            demand = file.read_text(encoding="utf-8")
        return [float(value) for value in demand.replace(",", " ").split()]
    except (OSError, ValueError):
        raise ConfigError(
            f"--demand {demand[:40]!r}: 24 numbers separated by commas, requests/s of each hour, or a file of them"
        ) from None


def print_costs(
    found: list[Figure],
    priced: Priced,
    use: float | Range,
    total: float,
    *,
    json: bool,
    csv: bool,
    demand: Table | None,
    unpriced: list[str],
) -> None:
    """Print the costs, the GPU hour term by term and, if asked, the day."""
    money = priced.hour.currency
    workloads = list(dict.fromkeys(figure.workload for figure in found))
    rows: list[list[Any]] = []
    results, notes = [], [*priced.warnings, *unpriced]
    for figure in found:
        cost = figure.cost
        spread, bars = _spread(figure, use, total)
        ends = (spread.low, spread.high) if spread else (None, None)
        rows.append(
            [figure.config, figure.workload, cost.per_million_output, *ends, cost.per_million_total,
             cost.per_million_input_apart, cost.per_million_output_apart, cost.energy_kwh_per_million_output,
             cost.carbon_g_per_million_output]
        )  # fmt: skip
        results.append(
            {
                "name": f"{figure.config} on {figure.workload}" if figure.workload else figure.config,
                "config": figure.config,
                "workload": figure.workload,
                **cost.as_dict(),
                "spread": spread.as_dict() if spread else None,
                "tornado": bars,
                "record_caveats": list(figure.caveats),
            }
        )
        notes += [f"{figure.config} on {figure.workload}: {caveat}" for caveat in figure.caveats]
    notes += dict.fromkeys(caveat for figure in found for caveat in figure.cost.caveats)
    columns = ["configuration", "workload", f"{money} per M output", "low", "high", "per M in+out", "per M input apart",
               "per M output apart", "kWh per M", "g CO2e per M"]  # fmt: skip
    full = Table(f"Cost per million tokens, {found[0].cost.at}", columns, rows)
    terms = [[t.name, t.per_gpu_hour, t.basis] for t in priced.hour.terms]
    terms.append(["total", priced.hour.total, priced.source])
    hour = Table(f"One GPU hour, {money}", ["term", "per GPU-hour", "basis"], terms)
    result = {
        "gpu_hour": priced.hour.as_dict(),
        "price_source": priced.source,
        "machine_per_hour": total,
        "costs": results,
        "day": [dict(zip(demand.columns, row, strict=True)) for row in demand.rows] if demand else None,
    }
    tables = [full] if csv else [*(_for_terminal(full, name) for name in workloads), hour]
    if demand is not None:
        tables.append(demand)
    emit(result, tables, json=json, csv=csv, notes=notes)


def _spread(figure: Figure, use: float | Range, total: float) -> tuple[Spread | None, list[dict[str, Any]]]:
    """The interval of one cost from those of throughput and utilisation, and which of the two matters more."""
    from inferoptim.economics.cost import cost_per_million
    from inferoptim.economics.uncertainty import Range, monte_carlo, tornado

    # The rate that is priced may be goodput, not the throughput measured: its relative spread is carried over.
    speed = figure.speed
    scale = figure.cost.tokens_per_s_priced / (speed.mode if isinstance(speed, Range) else speed)

    def model(x: Any) -> dict[str, Any]:
        return {"cost": cost_per_million(total, x["tokens_per_s"] * scale, x["utilisation"])}

    inputs: dict[str, float | Range] = {"tokens_per_s": speed, "utilisation": use}
    if not any(isinstance(value, Range) for value in inputs.values()):
        return None, []
    bounds = {"utilisation": (1e-9, 1.0), "tokens_per_s": (1e-9, 1e12)}
    bars = [
        {"input": bar.name, "at_low": bar.at_low, "at_high": bar.at_high}
        for bar in tornado(model, inputs, "cost")
    ]
    return monte_carlo(model, inputs, bounds=bounds)["cost"], bars


def _for_terminal(full: Table, workload: str) -> Table:
    """One workload; the interval in one column; no column that nothing was measured for (the notes say so)."""
    rows = []
    for config, _, value, low, high, *rest in (row for row in full.rows if row[1] == workload):
        rows.append([config, plus_minus(value, low, high), *rest])
    names = [full.columns[0], full.columns[2], *full.columns[5:]]
    kept = [i for i in range(len(names)) if any(row[i] is not None for row in rows)]
    title = f"{full.title} · {workload}" if workload else full.title
    return Table(title, [names[i] for i in kept], [[row[i] for i in kept] for row in rows])


def mean_power_w(run: Path, config: str | None) -> float | None:
    """Mean draw that the energy meter saw over the measured runs, watts; None where there was no meter.

    The meter sits in the GPU: fans, CPUs and power supplies of the node are not in it.
    """
    from inferoptim.records.reader import read_run

    joules = seconds = 0.0
    for (name, _), records in read_run(run).measured_runs().items():
        for record in records:
            if record.energy_j is not None and (config is None or name == config):
                joules, seconds = joules + record.energy_j, seconds + record.wall_s
    return joules / seconds if seconds > 0 else None
