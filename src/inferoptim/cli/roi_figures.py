"""What ``inferoptim roi`` shows: every figure with its interval, what matters most, and the notes a reader must know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from inferoptim.cli.money import Table, emit, number, plus_minus

if TYPE_CHECKING:
    from inferoptim.economics.scenario_file import Scenario
    from inferoptim.economics.uncertainty import Bar, Spread


# A figure rests on these: without them it would be about a made-up load, so they have no silent default.
NEEDED = (
    "requests_per_day", "input_tokens", "output_tokens", "gpu_s_per_m_input", "gpu_s_per_m_output", "factor",
    "utilisation", "gpu_hour_price", "migration_cost",
)  # fmt: skip


LABELS: tuple[tuple[str, str, str], ...] = (
    ("per_million_output_before", "per million output tokens, before", "money"),
    ("per_million_output_after", "per million output tokens, after", "money"),
    ("per_million_input_apart_after", "  of it a million prompt tokens", "money"),
    ("per_million_output_apart_after", "  of it a million output tokens", "money"),
    ("cost_index", "cost index (before = 100)", ""),
    ("gpus_before", "GPUs needed, before", ""),
    ("gpus_after", "GPUs needed, after", ""),
    ("paid_gpus_before", "GPUs paid (whole nodes), before", ""),
    ("paid_gpus_after", "GPUs paid (whole nodes), after", ""),
    ("bill_per_month_before", "bill a month, before", "money"),
    ("bill_per_month_after", "bill a month, after", "money"),
    ("saving_per_year_theoretical", "saving a year, in theory", "money"),
    ("saving_per_year_realisable", "saving a year, realisable (whole nodes)", "money"),
    ("saving_first_year", "saving of the first year (commitments, ramp)", "money"),
    ("gain", "gain over the horizon", "money"),
    ("cost", "cost over the horizon", "money"),
    ("roi", "ROI = (gain - cost) / cost", "share"),
    ("npv", "net present value", "money"),
    ("payback_months", "payback, months", ""),
    ("api_per_month", "the same traffic on the API, a month", "money"),
    ("break_even_requests_per_day", "break-even against the API, requests a day", ""),
    ("always_cheaper_requests_per_day", "own GPUs cheaper at any volume past", ""),
    ("kwh_per_million_output", "kWh per million output tokens", ""),
    ("carbon_g_per_million_output", "g CO2e per million output tokens", ""),
)


UNDEFINED = {
    "per_million_input_apart_after": "not measured apart",
    "per_million_output_apart_after": "not measured apart",
    "roi": "nothing is spent",
    "payback_months": "not within the horizon",
    "api_per_month": "no API price stated",
    "break_even_requests_per_day": "no API price, or a full node costs more",
    "always_cheaper_requests_per_day": "no API price, or a full node costs more",
    "kwh_per_million_output": "no power stated",
    "carbon_g_per_million_output": "no power or grid carbon stated",
}


def print_figures(
    scenario: Scenario,
    found: dict[str, Spread],
    bars: Sequence[Bar],
    by: str,
    warnings: Sequence[str],
    *,
    json: bool,
    csv: bool,
) -> None:
    """Every figure, the tornado of `by`, and the notes; as a table, JSON or CSV."""
    money = scenario.currency
    rows: list[list[Any]] = []
    for name, label, kind in LABELS:
        spread = found[name]
        scale = 100.0 if kind == "share" else 1.0
        unit = {"money": money, "share": "%"}.get(kind, "")
        if csv:
            low = None if spread.low == spread.high else spread.low
            high = None if spread.low == spread.high else spread.high
            rows.append([name, spread.value, low, high, unit])
        elif spread.value is None:
            rows.append([label, f"– ({UNDEFINED[name]})", unit])
        else:
            ends = [None if end is None else end * scale for end in (spread.low, spread.high)]
            rows.append([label, plus_minus(spread.value * scale, *ends), unit])
    columns = ["figure", "value", "low", "high", "unit"] if csv else ["figure", "value [95 % of draws]", ""]
    tables = [Table(scenario.title or "What it is worth", columns, rows)]
    widest = max((bar.swing for bar in bars), default=0.0)
    moving = [bar for bar in bars if bar.swing > 0 or None in (bar.at_low, bar.at_high)]
    if moving:
        tables.append(
            Table(
                f"What matters most for {by}: each input alone, from one end of its range to the other",
                ["input", "from", "to", by, ""],
                [
                    [
                        bar.name,
                        bar.input_low,
                        bar.input_high,
                        f"{_or(bar.at_low)} → {_or(bar.at_high)}",
                        "█" * round(24 * bar.swing / widest) if widest else "",
                    ]
                    for bar in moving
                ],
            )
        )
    result = {
        "title": scenario.title,
        "currency": money,
        "inputs": {name: _plain(value) for name, value in scenario.inputs.items()},
        "assumed": list(scenario.assumed),
        "levers": [
            {"name": v.name, "factor": _plain(v.factor), "on": v.on, "source": v.source}
            for v in scenario.levers
        ],
        "figures": {name: spread.as_dict() for name, spread in found.items()},
        "tornado": {
            "of": by,
            "bars": [{"input": b.name, "at_low": b.at_low, "at_high": b.at_high} for b in bars],
        },
    }
    emit(result, tables, json=json, csv=csv, notes=_notes(scenario, found, warnings))


def _notes(scenario: Scenario, found: dict[str, Spread], warnings: Sequence[str]) -> list[str]:
    x = scenario.central()
    notes = [*warnings, *scenario.notes]
    if x["factor"] < 1:
        gain = found["capacity_gain"].value or 0.0
        notes.append(
            f"read the gain one way: {x['factor'] - 1:+.0%} unit cost on the same traffic, or {gain:+.0%} traffic on the same "
            "bill; never both"
        )
    if scenario.levers:
        notes.append("levers multiply; their factors are as stated in the scenario")
    never = found["payback_months"].undefined_share
    if 0 < never < 1:
        notes.append(f"does not pay back within the horizon in {never:.1%} of draws")
    if not any(spread.low != spread.high for spread in found.values()):
        notes.append("no range was stated: no intervals (--set name=low:mode:high)")
    if scenario.assumed:
        left = ", ".join(f"{name} {number(x[name])}" for name in scenario.assumed if name not in NEEDED)
        notes.append(f"not stated, taken as: {left}")
    return notes


def _or(value: float | None) -> str:
    return "–" if value is None else number(value)


def _plain(value: Any) -> Any:
    from dataclasses import asdict

    from inferoptim.economics.uncertainty import Range

    return asdict(value) if isinstance(value, Range) else value


def list_inputs(*, json: bool, csv: bool) -> None:
    """Every input of a scenario, with its bounds and what it is taken as unless stated."""
    from inferoptim.economics.scenario import INPUTS

    rows = [
        [i.name, i.unit, i.low, i.high, "must be stated" if i.name in NEEDED else number(i.start)]
        for i in INPUTS
    ]
    listed = [
        {
            "name": i.name,
            "unit": i.unit,
            "low": i.low,
            "high": i.high,
            "default": None if i.name in NEEDED else i.start,
        }
        for i in INPUTS
    ]
    columns = ["input", "unit", "from", "to", "unless stated"]
    emit({"inputs": listed}, [Table("Inputs of a scenario", columns, rows)], json=json, csv=csv)
