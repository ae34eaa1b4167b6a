"""``inferoptim cost``: money per million tokens, from a bench record or typed numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inferoptim.cli.money import (
    Csv,
    Currency,
    Json,
    Priced,
    Prices,
    Rate,
    Table,
    emit,
    parse_assignment,
    plus_minus,
)
from inferoptim.errors import ConfigError

if TYPE_CHECKING:
    from inferoptim.economics.cost import TokenCost

PRICE, WORK, LEVEL, POWER, OWNED, OUT = (
    "Price (one of)", "Work (a record, or typed)", "Load and service level", "Energy", "An owned node", "Output",
)  # fmt: skip


def cost(
    run: Annotated[
        Path | None, typer.Option("--run", help="Results folder of a bench.", rich_help_panel=WORK)
    ] = None,
    config: Annotated[
        str | None, typer.Option("--config", help="Only this configuration of the run.", rich_help_panel=WORK)
    ] = None,
    workload: Annotated[
        str | None, typer.Option("--workload", help="Only this workload of the run.", rich_help_panel=WORK)
    ] = None,
    tokens_per_s: Annotated[
        str | None,
        typer.Option(
            "--tokens-per-s",
            help="Output tokens/s when busy: a number, or low:mode:high.",
            rich_help_panel=WORK,
        ),
    ] = None,
    input_tokens: Annotated[
        float | None, typer.Option("--input-tokens", help="Prompt tokens per request.", rich_help_panel=WORK)
    ] = None,
    output_tokens: Annotated[
        float | None, typer.Option("--output-tokens", help="Output tokens per request.", rich_help_panel=WORK)
    ] = None,
    gpu_s_in: Annotated[
        float | None,
        typer.Option(
            "--gpu-s-per-m-input",
            help="Measured GPU-seconds per million prompt tokens.",
            rich_help_panel=WORK,
        ),
    ] = None,
    gpu_s_out: Annotated[
        float | None,
        typer.Option(
            "--gpu-s-per-m-output",
            help="Measured GPU-seconds per million output tokens.",
            rich_help_panel=WORK,
        ),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option("--price-per-hour", help="Of the whole machine measured.", rich_help_panel=PRICE),
    ] = None,
    offer: Annotated[
        str | None,
        typer.Option(
            "--offer", help="Offer of the catalogue (inferoptim prices list).", rich_help_panel=PRICE
        ),
    ] = None,
    gpus: Annotated[int, typer.Option("--gpus", help="GPUs that did the work.", rich_help_panel=PRICE)] = 1,
    extras: Annotated[
        float,
        typer.Option(
            "--extras-per-hour", help="Storage, system, egress; per GPU-hour.", rich_help_panel=PRICE
        ),
    ] = 0.0,
    interruptions: Annotated[
        float,
        typer.Option(
            "--interruptions-per-day", help="Spot: how often the machine is taken.", rich_help_panel=PRICE
        ),
    ] = 0.0,
    lost_hours: Annotated[
        float,
        typer.Option(
            "--lost-hours", help="Spot: hours redone and reloaded each time.", rich_help_panel=PRICE
        ),
    ] = 0.0,
    upfront: Annotated[
        float, typer.Option("--upfront", help="Reserved, blocks: paid once per GPU.", rich_help_panel=PRICE)
    ] = 0.0,
    term_hours: Annotated[
        float,
        typer.Option("--term-hours", help="Hours over which --upfront is spread.", rich_help_panel=PRICE),
    ] = 0.0,
    capex: Annotated[
        float | None, typer.Option("--capex", help="Purchase price of the node.", rich_help_panel=OWNED)
    ] = None,
    gpus_per_node: Annotated[int, typer.Option("--gpus-per-node", rich_help_panel=OWNED)] = 8,
    years: Annotated[float, typer.Option("--years", help="Amortisation.", rich_help_panel=OWNED)] = 3.0,
    cost_of_capital: Annotated[
        float, typer.Option("--cost-of-capital", help="A year.", rich_help_panel=OWNED)
    ] = 0.0,
    residual: Annotated[
        float, typer.Option("--residual", help="Share of capex left.", rich_help_panel=OWNED)
    ] = 0.0,
    hosting: Annotated[
        float, typer.Option("--hosting-per-month", help="Per node.", rich_help_panel=OWNED)
    ] = 0.0,
    support: Annotated[
        float, typer.Option("--support", help="Share of capex a year.", rich_help_panel=OWNED)
    ] = 0.0,
    staff: Annotated[float, typer.Option("--staff-per-year", help="Per node.", rich_help_panel=OWNED)] = 0.0,
    opex: Annotated[
        float, typer.Option("--opex", help="Other operation, share of capex a year.", rich_help_panel=OWNED)
    ] = 0.0,
    availability: Annotated[float, typer.Option("--availability", rich_help_panel=OWNED)] = 1.0,
    power: Annotated[
        float, typer.Option("--power-w", help="Mean draw of the node, watts.", rich_help_panel=POWER)
    ] = 0.0,
    power_measured: Annotated[
        bool,
        typer.Option("--power-measured", help="The watts were measured, not stated.", rich_help_panel=POWER),
    ] = False,
    pue: Annotated[float, typer.Option("--pue", rich_help_panel=POWER)] = 1.0,
    kwh_price: Annotated[float | None, typer.Option("--kwh-price", rich_help_panel=POWER)] = None,
    energy: Annotated[
        float | None, typer.Option("--energy-j-per-token", help="Measured.", rich_help_panel=POWER)
    ] = None,
    carbon: Annotated[
        float | None, typer.Option("--carbon", help="Of the grid, g CO2e/kWh.", rich_help_panel=POWER)
    ] = None,
    utilisation: Annotated[
        str,
        typer.Option(
            "--utilisation", help="Share of paid hours busy: 0.7, or low:mode:high.", rich_help_panel=LEVEL
        ),
    ] = "1",
    goodput: Annotated[
        float | None,
        typer.Option(
            "--goodput", help="Requests/s that met the objective (inferoptim load).", rich_help_panel=LEVEL
        ),
    ] = None,
    slo: Annotated[str, typer.Option("--slo", help="The objective, in words.", rich_help_panel=LEVEL)] = "",
    demand: Annotated[
        str | None,
        typer.Option(
            "--demand", help="24 hourly requests/s, comma-separated: price a day.", rich_help_panel=LEVEL
        ),
    ] = None,
    headroom: Annotated[
        float, typer.Option("--headroom", help="Share of goodput kept free.", rich_help_panel=LEVEL)
    ] = 0.0,
    cache_hit: Annotated[
        float,
        typer.Option(
            "--cache-hit", help="Share of prompt tokens in the prefix cache.", rich_help_panel=LEVEL
        ),
    ] = 0.0,
    prices: Prices = None,
    rate: Rate = None,
    currency: Currency = None,
    focus: Annotated[
        Path | None,
        typer.Option("--focus", help="Write a day's cost lines as FOCUS CSV here.", rich_help_panel=OUT),
    ] = None,
    json: Json = False,
    csv: Csv = False,
) -> None:
    """Cost per million tokens: input and output apart, at your load, at a service level, with its interval.

    Example: inferoptim cost --offer aws-p5-on-demand --tokens-per-s 2400 --utilisation 0.6
    """
    from inferoptim.economics.uncertainty import Range, parse_range

    owned = {
        "gpus": gpus_per_node, "years": years, "cost_of_capital": cost_of_capital, "residual_share": residual,
        "power_w": power, "power_measured": power_measured, "pue": pue, "kwh_price": kwh_price or 0.0,
        "hosting_per_month": hosting, "support_share": support, "staff_per_year": staff, "opex_share": opex,
        "availability": availability,
    }  # fmt: skip
    rental = {
        "extras_per_hour": extras, "interruptions_per_day": interruptions, "lost_hours_per_interruption": lost_hours,
        "upfront": upfront, "term_hours": term_hours,
    }  # fmt: skip
    priced = _price(run, price, offer, capex, gpus, owned, rental, prices, currency, rate)
    use = parse_range("utilisation", parse_assignment(f"utilisation={utilisation}")[1])
    middle = use.mode if isinstance(use, Range) else use
    options: dict[str, Any] = {
        "utilisation": middle, "cache_hit": cache_hit, "goodput_requests_per_s": goodput, "slo": slo or None, "pue": pue,
        "kwh_price": kwh_price, "carbon_g_per_kwh": carbon, "energy_j_per_token": energy,
        "input_tokens_per_request": input_tokens, "output_tokens_per_request": output_tokens,
    }  # fmt: skip
    total = priced.hour.total * gpus
    found: list[tuple[str, TokenCost, float | Range, list[str]]]
    if run is not None:
        if tokens_per_s is not None:
            raise ConfigError("give either --run or --tokens-per-s, not both")
        found = _from_run(run, config, workload, total, priced.hour.currency, options)
    elif tokens_per_s is not None:
        found = [_typed(tokens_per_s, total, priced.hour.currency, gpu_s_in, gpu_s_out, options)]
    else:
        raise ConfigError("nothing to price: give --run FOLDER, or --tokens-per-s with a price")
    _print(
        found,
        priced,
        use,
        total,
        json=json,
        csv=csv,
        demand=_day(demand, goodput, found, gpus, headroom, priced),
    )
    if focus is not None:
        _write_focus(focus, priced, found[0][1], gpus, offer or "stated")


def _price(
    run: Path | None,
    price: float | None,
    offer: str | None,
    capex: float | None,
    gpus: int,
    owned: dict[str, Any],
    rental: dict[str, Any],
    prices: Path | None,
    currency: str | None,
    rate: list[str] | None,
) -> Priced:
    """The price of a GPU-hour from the one way that was asked."""
    from dataclasses import replace

    from inferoptim.cli.money import resolve_offer
    from inferoptim.economics.checks import whole
    from inferoptim.economics.gpu_hour import OwnedNode, Rental, owned_gpu_hour, rented_gpu_hour

    whole("--gpus", gpus)
    if sum(given is not None for given in (price, offer, capex)) > 1:
        raise ConfigError("give one price: --price-per-hour, --offer or --capex")
    if capex is not None:
        money = (currency or "EUR").upper()
        return Priced(
            owned_gpu_hour(OwnedNode(capex=capex, currency=money, **owned)), owned["gpus"], "owned, as stated"
        )
    if offer is not None:
        priced = resolve_offer(offer, prices, currency, rate)
        label = priced.hour.label
        hour = rented_gpu_hour(Rental(priced.hour.total, priced.hour.currency, label, **rental))
        return replace(priced, hour=hour)
    if price is not None:
        money = (currency or "EUR").upper()
        return Priced(rented_gpu_hour(Rental(price / gpus, money, "stated", **rental)), gpus, "stated")
    if run is not None:
        from inferoptim.records.reader import read_summary

        summary = read_summary(run)
        if summary.price_per_hour:
            from inferoptim.economics.currency import Rates

            money = (currency or summary.currency).upper()
            hourly = Rates.parse(rate or ()).convert(summary.price_per_hour, summary.currency, money)
            source = summary.price_source or "stated with the run"
            return Priced(rented_gpu_hour(Rental(hourly / gpus, money, "of the run", **rental)), gpus, source)
    raise ConfigError("no price: give --price-per-hour, --offer ID (inferoptim prices list) or --capex")


def _typed(
    tokens_per_s: str,
    total: float,
    currency: str,
    gpu_s_in: float | None,
    gpu_s_out: float | None,
    options: dict[str, Any],
) -> tuple[str, TokenCost, Any, list[str]]:
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
    return "stated", token_cost(serving), speed, []


def _from_run(
    run: Path, config: str | None, workload: str | None, total: float, currency: str, options: dict[str, Any]
) -> list[tuple[str, TokenCost, Any, list[str]]]:
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
    found: list[tuple[str, TokenCost, Any, list[str]]] = []
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
        found.append((f"{metric.config_id} on {metric.workload}", priced, spread, notes))
    if not found:
        raise ConfigError(
            f"{run}: nothing measured there can be priced (failed configurations have no speed)"
        )
    return found


def _day(
    demand: str | None, goodput: float | None, found: list[Any], gpus: int, headroom: float, priced: Priced
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
    per_request = found[0][1].tokens_per_s_priced / goodput  # output tokens: goodput was given in requests
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


def _print(
    found: list[tuple[str, TokenCost, Any, list[str]]],
    priced: Priced,
    use: Any,
    total: float,
    *,
    json: bool,
    csv: bool,
    demand: Table | None,
) -> None:
    from inferoptim.economics.cost import cost_per_million
    from inferoptim.economics.uncertainty import Range, monte_carlo, tornado

    money = priced.hour.currency
    rows, results, notes = [], [], list(priced.warnings)
    for name, cost, speed, caveats in found:
        # The rate that is priced may be goodput, not the throughput measured: its relative spread is carried over.
        scale = cost.tokens_per_s_priced / (speed.mode if isinstance(speed, Range) else speed)

        def model(x: Any, scale: float = scale) -> dict[str, Any]:
            return {"cost": cost_per_million(total, x["tokens_per_s"] * scale, x["utilisation"])}

        inputs = {"tokens_per_s": speed, "utilisation": use}
        spread = None
        if any(isinstance(v, Range) for v in inputs.values()):
            spread = monte_carlo(
                model, inputs, bounds={"utilisation": (1e-9, 1.0), "tokens_per_s": (1e-9, 1e12)}
            )["cost"]
        bars = [
            {"input": b.name, "at_low": b.at_low, "at_high": b.at_high}
            for b in tornado(model, inputs, "cost")
        ]
        whole = plus_minus(
            cost.per_million_output, spread.low if spread else None, spread.high if spread else None
        )
        rows.append(
            [name, whole, cost.per_million_total, cost.per_million_input_apart, cost.per_million_output_apart,
             cost.energy_kwh_per_million_output, cost.carbon_g_per_million_output]
        )  # fmt: skip
        results.append(
            {
                "name": name,
                **cost.as_dict(),
                "spread": spread.as_dict() if spread else None,
                "tornado": bars,
                "record_caveats": caveats,
            }
        )
        notes += [f"{name}: {caveat}" for caveat in caveats]
    notes += dict.fromkeys(caveat for _, cost, _, _ in found for caveat in cost.caveats)
    at = found[0][1].at
    columns = [
        "configuration",
        f"{money} per M output",
        "per M in+out",
        "per M input",
        "per M output apart",
        "kWh per M",
        "g CO2e per M",
    ]
    tables = [Table(f"Cost per million tokens, {at}", columns, rows)]
    terms = [[t.name, t.per_gpu_hour, t.basis] for t in priced.hour.terms]
    terms.append(["total", priced.hour.total, priced.source])
    tables.append(Table(f"One GPU hour, {money}", ["term", "per GPU-hour", "basis"], terms))
    if demand is not None:
        tables.append(demand)
    result = {
        "gpu_hour": priced.hour.as_dict(),
        "price_source": priced.source,
        "machine_per_hour": total,
        "costs": results,
        "day": [dict(zip(demand.columns, row, strict=True)) for row in demand.rows] if demand else None,
    }
    emit(result, tables, json=json, csv=csv, notes=notes)


def _write_focus(path: Path, priced: Priced, cost: TokenCost, gpus: int, offer: str) -> None:
    import datetime as dt

    from inferoptim.economics.focus import focus_csv
    from inferoptim.records.writer import write_atomic

    text = focus_csv(priced.hour, cost, day=dt.date.today(), gpus=gpus, provider=offer, resource=offer)
    write_atomic(path, text)
    typer.echo(f"wrote {path}", err=True)
