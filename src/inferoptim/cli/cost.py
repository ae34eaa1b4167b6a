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
    parse_assignment,
)
from inferoptim.errors import ConfigError

if TYPE_CHECKING:
    from inferoptim.economics.cost import TokenCost

PRICE, WORK, LEVEL, POWER, OWNED, OUT = (
    "Price (one of)", "Work (a record, or typed)", "Load and service level", "Energy", "An owned node", "Output",
)  # fmt: skip


def cost(
    run: Annotated[
        Path | None,
        typer.Argument(help="Results folder of a bench or a load test; without it, state --tokens-per-s."),
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
    slo: Annotated[
        list[str] | None,
        typer.Option(
            "--slo",
            help="Objective of a request, repeatable: ttft=500ms, tpot=40ms, e2e=10s. Goodput is counted in the run.",
            rich_help_panel=LEVEL,
        ),
    ] = None,
    demand: Annotated[
        str | None,
        typer.Option(
            "--demand",
            help="24 hourly requests/s, comma-separated or a file: price a day.",
            rich_help_panel=LEVEL,
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

    Examples: inferoptim cost results/my-run --price-per-hour 0.08 --utilisation 0.6;
    inferoptim cost --offer aws-p5-on-demand --tokens-per-s 2400 --utilisation 0.4:0.5:0.7
    """
    from inferoptim.cli.cost_figures import day_table, from_load, from_run, mean_power_w, print_costs, typed
    from inferoptim.economics.checks import share
    from inferoptim.economics.uncertainty import Range, parse_range

    is_bench = run is not None and not (run / "load.json").exists()
    measured_w = (
        mean_power_w(run, config) if run is not None and is_bench and capex and power == 0.0 else None
    )
    if measured_w is not None:
        power, power_measured = measured_w * gpus_per_node / gpus, True
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
    share("utilisation", use.high if isinstance(use, Range) else use, zero=False)
    share("utilisation", use.low if isinstance(use, Range) else use, zero=False)
    options: dict[str, Any] = {
        "utilisation": middle, "cache_hit": cache_hit, "goodput_requests_per_s": goodput, "slo": ", ".join(slo or ()) or None, "pue": pue,
        "kwh_price": kwh_price, "carbon_g_per_kwh": carbon, "energy_j_per_token": energy,
        "input_tokens_per_request": input_tokens, "output_tokens_per_request": output_tokens,
    }  # fmt: skip
    total = priced.hour.total * gpus
    unpriced: list[str] = []
    if run is not None:
        if tokens_per_s is not None:
            raise ConfigError("give either a results folder or --tokens-per-s, not both")
        if (run / "load.json").exists():
            found = from_load(run, total, priced.hour.currency, options)
        else:
            found, unpriced = from_run(run, config, workload, total, priced.hour.currency, options, slo or [])
    elif tokens_per_s is not None:
        found = [typed(tokens_per_s, total, priced.hour.currency, gpu_s_in, gpu_s_out, options)]
    else:
        raise ConfigError("nothing to price: give the results folder of a bench, or --tokens-per-s")
    print_costs(
        found,
        priced,
        use,
        total,
        json=json,
        csv=csv,
        demand=None if demand is None else day_table(demand, found, gpus, headroom, priced),
        unpriced=unpriced,
    )
    if focus is not None:
        _write_focus(focus, priced, found[0].cost, gpus, offer or "stated")


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
    if run is not None and not (run / "load.json").exists():
        from inferoptim.records.reader import read_summary

        summary = read_summary(run)
        if summary.price_per_hour:
            from inferoptim.economics.currency import Rates

            money = (currency or summary.currency).upper()
            hourly = Rates.parse(rate or ()).convert(summary.price_per_hour, summary.currency, money)
            source = summary.price_source or "stated with the run"
            return Priced(rented_gpu_hour(Rental(hourly / gpus, money, "of the run", **rental)), gpus, source)
    raise ConfigError("no price: give --price-per-hour, --offer ID (inferoptim prices list) or --capex")


def _write_focus(path: Path, priced: Priced, cost: TokenCost, gpus: int, offer: str) -> None:
    import datetime as dt

    from inferoptim.economics.focus import focus_csv
    from inferoptim.records.writer import write_atomic

    text = focus_csv(
        priced.hour,
        cost,
        day=dt.date.today(),
        gpus=gpus,
        provider=priced.provider or "stated",
        resource=offer,
        region=priced.region,
    )
    write_atomic(path, text)
    typer.echo(f"wrote {path}", err=True)
