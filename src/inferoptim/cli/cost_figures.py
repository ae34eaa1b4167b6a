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
    return Figure("stated", "", token_cost(serving), speed)


def from_run(
    run: Path, config: str | None, workload: str | None, total: float, currency: str, options: dict[str, Any]
) -> list[Figure]:
    """The cost of each measured configuration of a run."""
    from inferoptim.economics.uncertainty import Range
    from inferoptim.records.reader import read_run
    from inferoptim.report.economics_section import caveats_of, cost_of, gpu_time_splits, rate_despite_failure

    folder = read_run(run)
    summary = folder.summary
    if summary is None:
        raise ConfigError(f"{run}: the run has no summary.json yet (inferoptim report {run})")
    configs = {c.config_id: c for c in summary.configurations}
    names = {m.workload for m in summary.metrics}
    for given, known, what in ((config, configs, "configuration"), (workload, names, "workload")):
        if given is not None and given not in known:
            raise ConfigError(f"{run}: no {what} {given!r}; it has {', '.join(sorted(known))}")
    splits, measured = gpu_time_splits(folder), folder.measured_runs()
    found = []
    for metric in summary.metrics:
        if (config and metric.config_id != config) or (workload and metric.workload != workload):
            continue
        runs = measured.get((metric.config_id, metric.workload), [])
        notes = caveats_of(configs[metric.config_id], metric, summary)
        rate = metric.output_tokens_per_s or (rate_despite_failure(runs) if config else None)
        if rate is None:
            continue
        row = metric.model_copy(update={"output_tokens_per_s": rate})
        priced = cost_of(row, runs, total, currency, splits, **options)
        spread = Range(rate.low, rate.value, rate.high, "measured") if rate.low < rate.high else rate.value
        found.append(Figure(metric.config_id, metric.workload, priced, spread, tuple(notes)))
    if not found:
        raise ConfigError(
            f"{run}: nothing measured there can be priced (failed configurations have no speed)"
        )
    return found


def day_table(
    demand: str | None, goodput: float | None, found: list[Figure], gpus: int, headroom: float, priced: Priced
) -> Table | None:
    if demand is None:
        return None
    from inferoptim.economics.demand import demand_cost_per_million, provision

    if goodput is None:
        raise ConfigError(
            "--demand needs --goodput: a day is provisioned for a service level, not for peak throughput"
        )
    try:
        hours = [float(value) for value in demand.split(",")]
    except ValueError:
        raise ConfigError("--demand: 24 numbers separated by commas, requests/s of each hour") from None
    per_request = found[0].cost.tokens_per_s_priced / goodput  # output tokens: goodput was given in requests
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
    return Table("Over the day", columns, rows)


def print_costs(
    found: list[Figure],
    priced: Priced,
    use: float | Range,
    total: float,
    *,
    json: bool,
    csv: bool,
    demand: Table | None,
) -> None:
    """Print the costs, the GPU hour term by term and, if asked, the day."""
    money = priced.hour.currency
    workloads = list(dict.fromkeys(figure.workload for figure in found))
    rows: list[list[Any]] = []
    results, notes = [], list(priced.warnings)
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
