"""``inferoptim roi``: what a change is worth, with its interval, what matters most, and the HTML simulator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inferoptim.cli.money import (
    Csv,
    Currency,
    Json,
    Prices,
    Rate,
    Table,
    emit,
    number,
    parse_assignment,
    plus_minus,
)
from inferoptim.errors import ConfigError

if TYPE_CHECKING:
    from inferoptim.economics.scenario_file import Scenario
    from inferoptim.economics.uncertainty import Bar, Spread

# A figure rests on these: without them it would be about a made-up load, so they have no silent default.
NEEDED = (
    "requests_per_day", "input_tokens", "output_tokens", "gpu_s_per_m_input", "gpu_s_per_m_output", "factor",
    "utilisation", "gpu_hour_price", "migration_cost",
)  # fmt: skip
DRIVEN = ("npv", "per_million_output_after", "saving_per_year_realisable", "payback_months")
FROM_RUN, PRICE, OUT = "From a bench run", "Prices", "Output"


def roi(
    what: Annotated[
        Path | None, typer.Argument(help="A scenario file (TOML), or the results folder of a bench.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="An input: name=value or name=low:mode:high[:measured]; repeatable. --inputs lists them.",
        ),
    ] = None,
    inputs: Annotated[
        bool, typer.Option("--inputs", help="List every input with its bounds and default.")
    ] = False,
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            help="After the change; default: the fastest that passed its gate.",
            rich_help_panel=FROM_RUN,
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline", help="Before the change; default: the run's baseline.", rich_help_panel=FROM_RUN
        ),
    ] = None,
    workload: Annotated[
        str | None, typer.Option("--workload", help="Default: the busiest.", rich_help_panel=FROM_RUN)
    ] = None,
    gpus: Annotated[
        int,
        typer.Option(
            "--gpus", help="GPUs (or machines) that did the work together.", rich_help_panel=FROM_RUN
        ),
    ] = 1,
    offer: Annotated[
        str | None, typer.Option("--offer", help="Price and node of this offer.", rich_help_panel=PRICE)
    ] = None,
    api: Annotated[
        str | None,
        typer.Option(
            "--api",
            help="Break-even against this hosted model, at list price (provider/name).",
            rich_help_panel=PRICE,
        ),
    ] = None,
    prices: Prices = None,
    rate: Rate = None,
    currency: Currency = None,
    by: Annotated[
        str,
        typer.Option("--by", help=f"Figure that the tornado is about: {', '.join(DRIVEN)}, or any other."),
    ] = "npv",
    draws: Annotated[int, typer.Option("--draws", help="Of the Monte-Carlo.", rich_help_panel=OUT)] = 10_000,
    seed: Annotated[int, typer.Option("--seed", rich_help_panel=OUT)] = 0,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Write the simulator: one file, no network.", rich_help_panel=OUT),
    ] = None,
    lang: Annotated[
        str,
        typer.Option("--lang", help="Language in which the simulator opens: en, fr.", rich_help_panel=OUT),
    ] = "en",
    json: Json = False,
    csv: Csv = False,
) -> None:
    """Return of a change: saving (in theory, and realisable), payback, NPV, break-even; each with its interval.

    Example: inferoptim roi results/my-run --offer nebius-h100 --set requests_per_day=2e5:3e5:5e5
    --set utilisation=0.4:0.5:0.7 --set migration_cost=20000 --html roi.html
    """
    from inferoptim.economics.scenario import OUTPUTS

    if inputs:
        _list_inputs(json=json, csv=csv)
        return
    if by not in OUTPUTS:
        raise ConfigError(f"--by {by!r}: one of {', '.join(OUTPUTS)}")
    scenario, warnings = _scenario(
        what, set_ or [], config, baseline, workload, gpus, offer, api, prices, rate, currency
    )
    if html is not None:
        from inferoptim.economics.simulator import simulator_page
        from inferoptim.records.writer import write_atomic

        write_atomic(html, simulator_page(scenario, lang))
        typer.echo(f"wrote {html}", err=True)
    missing = [name for name in NEEDED if name in scenario.assumed]
    if missing:
        if html is not None and not (json or csv):
            typer.echo(
                f"no figures here: not stated: {', '.join(missing)}; the page marks its start positions"
            )
            return
        raise ConfigError(
            f"not stated: {', '.join(missing)}: give --set name=value for each, a scenario file or a bench run "
            "(or only --html, to move them in the simulator)"
        )
    from inferoptim.economics.scenario_file import drivers, spreads

    _print(scenario, spreads(scenario, draws, seed), drivers(scenario, by), by, warnings, json=json, csv=csv)


def _scenario(
    what: Path | None,
    assignments: Sequence[str],
    config: str | None,
    baseline: str | None,
    workload: str | None,
    gpus: int,
    offer: str | None,
    api: str | None,
    prices: Path | None,
    rate: list[str] | None,
    currency: str | None,
) -> tuple[Scenario, list[str]]:
    """The scenario from a file or a run, with what the options state on top."""
    from inferoptim.economics.checks import whole
    from inferoptim.economics.scenario_file import build, read_scenario

    stated = dict(parse_assignment(text) for text in assignments)
    if len(stated) < len(assignments):
        raise ConfigError("--set states one input twice")
    run = what if what is not None and what.is_dir() else None
    if run is None and any(given is not None for given in (config, baseline, workload)):
        raise ConfigError(
            "--config, --baseline and --workload need the results folder of a bench: inferoptim roi results/<run>"
        )
    base = read_scenario(what) if what is not None and run is None else None
    known = set() if base is None else set(base.inputs) - set(base.assumed)
    money = (currency or (base.currency if base and base.currency else "")).upper()
    warnings: list[str] = []
    if offer is not None:
        _refuse_both("--offer", ("gpu_hour_price", "gpus_per_node"), {*stated, *known})
        money = _state_offer(stated, offer, prices, money, rate, warnings)
    elif run is not None and "gpu_hour_price" not in stated:
        money = _state_price_of_run(stated, run, whole("--gpus", gpus), money, rate)
    money = money or "EUR"
    if base is not None and currency and base.currency != money and known:
        raise ConfigError(
            f"{what}: its amounts are in {base.currency}; change them in the file to print {money}"
        )
    if api is not None:
        _refuse_both("--api", ("api_input_price", "api_cached_price", "api_output_price"), {*stated, *known})
        _state_api(stated, api, money, rate, warnings)
    if run is not None:
        from inferoptim.report.scenario_from_run import scenario_from_run

        if "factor" in stated:
            raise ConfigError("the run measures `factor`: choose its configuration with --config instead")
        return (
            scenario_from_run(
                run,
                stated,
                config=config,
                baseline=baseline,
                workload=workload,
                gpus=whole("--gpus", gpus),
                currency=money,
            ),
            warnings,
        )
    if base is None:
        return build(stated, currency=money), warnings
    if offer is not None and base.currency != money:
        raise ConfigError(
            f"{what}: its amounts are in {base.currency}, the offer in {money}: add --currency {base.currency}"
        )
    kept = {name: base.inputs[name] for name in known if not (name == "factor" and base.levers)}
    return (
        build(
            {**kept, **stated}, currency=base.currency, levers=base.levers, title=base.title, notes=base.notes
        ),
        warnings,
    )


def _refuse_both(option: str, names: Sequence[str], known: set[str]) -> None:
    twice = [name for name in names if name in known]
    if twice:
        raise ConfigError(f"{option} and {twice[0]} state the same thing: keep one")


def _state_offer(
    stated: dict[str, Any],
    offer: str,
    prices: Path | None,
    money: str,
    rate: list[str] | None,
    warnings: list[str],
) -> str:
    from inferoptim.cli.money import resolve_offer

    priced = resolve_offer(offer, prices, money or None, rate)
    stated["gpu_hour_price"] = priced.hour.total
    stated["gpus_per_node"] = priced.gpus_per_node
    warnings.extend(priced.warnings)
    warnings.append(f"price of a GPU hour: {priced.source}")
    return priced.hour.currency


def _state_price_of_run(
    stated: dict[str, Any], run: Path, gpus: int, money: str, rate: list[str] | None
) -> str:
    """The price that was stored with the run, if one was."""
    from inferoptim.economics.currency import Rates
    from inferoptim.records.reader import read_summary

    summary = read_summary(run)
    if not summary.price_per_hour:
        return money
    money = money or summary.currency
    stated["gpu_hour_price"] = (
        Rates.parse(rate or ()).convert(summary.price_per_hour, summary.currency, money) / gpus
    )
    stated.setdefault("gpus_per_node", gpus)
    return money


def _state_api(
    stated: dict[str, Any], model: str, money: str, rate: list[str] | None, warnings: list[str]
) -> None:
    from inferoptim.economics.api_prices import CURRENCY, api_price
    from inferoptim.economics.currency import Rates

    price = api_price(model)
    factor = Rates.parse(rate or ()).factor(CURRENCY, money)
    stated["api_input_price"] = price.input * factor
    stated["api_output_price"] = price.output * factor
    # Where the list states no cached rate, a cached token costs the full one.
    stated["api_cached_price"] = (price.input if price.cached_input is None else price.cached_input) * factor
    warnings.append(f"API: {price.provider}/{price.model}, {price.source}")


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


def _print(
    scenario: Scenario,
    found: dict[str, Spread],
    bars: Sequence[Bar],
    by: str,
    warnings: Sequence[str],
    *,
    json: bool,
    csv: bool,
) -> None:
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


def _list_inputs(*, json: bool, csv: bool) -> None:
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
