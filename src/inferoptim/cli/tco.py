"""``inferoptim tco``: offers side by side over a horizon, and training against inference over a lifetime."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from inferoptim.cli.money import Csv, Currency, Json, Prices, Rate, Table, emit
from inferoptim.errors import ConfigError

GUIDE_1_2 = ("guide-on-prem-h100", "aws-p5-capacity-block", "vast-h100-average", "aws-p5-on-demand")


def tco(
    offer: Annotated[
        list[str] | None,
        typer.Option(
            "--offer",
            help="Offer to compare, repeatable; default: the guide's table 1.2. The first is the reference.",
        ),
    ] = None,
    gpus: Annotated[
        float, typer.Option("--gpus", help="GPUs that today's traffic needs (a fraction is fine).")
    ] = 8,
    years: Annotated[int, typer.Option("--years", help="Horizon; also the amortisation of a purchase.")] = 3,
    hours: Annotated[float, typer.Option("--hours-per-year", help="Hours paid a year.")] = 8760,
    growth: Annotated[float, typer.Option("--growth", help="Of the need, a year (0.5 = +50 %).")] = 0.0,
    price_change: Annotated[
        float, typer.Option("--price-change", help="Of rents, a year (-0.2 = -20 %).")
    ] = 0.0,
    discount: Annotated[float, typer.Option("--discount-rate", help="A year.")] = 0.0,
    run_cost: Annotated[float, typer.Option("--run-cost-per-year", help="People, licences, network.")] = 0.0,
    one_off: Annotated[float, typer.Option("--one-off", help="Paid at the start.")] = 0.0,
    cost_of_capital: Annotated[float, typer.Option("--cost-of-capital", help="Purchases: a year.")] = 0.0,
    residual: Annotated[
        float, typer.Option("--residual", help="Purchases: share of the price left at the end.")
    ] = 0.0,
    power: Annotated[float, typer.Option("--power-w", help="Purchases: mean draw of the node, watts.")] = 0.0,
    pue: Annotated[float, typer.Option("--pue", help="Purchases.")] = 1.0,
    kwh_price: Annotated[float, typer.Option("--kwh-price", help="Purchases: price of a kWh.")] = 0.0,
    hosting: Annotated[float, typer.Option("--hosting-per-month", help="Purchases: per node.")] = 0.0,
    support: Annotated[float, typer.Option("--support", help="Purchases: share of the price a year.")] = 0.0,
    staff: Annotated[float, typer.Option("--staff-per-year", help="Purchases: per node.")] = 0.0,
    training_cost: Annotated[
        float | None,
        typer.Option("--training-cost", help="Also weigh training against inference over the horizon."),
    ] = None,
    prices: Prices = None,
    rate: Rate = None,
    currency: Currency = None,
    json: Json = False,
    csv: Csv = False,
) -> None:
    """Total cost of ownership: the guide's table 1.2, generalised to your offers, need and horizon.

    A purchase is amortised over the horizon with the owned-node terms that you state.
    """
    from dataclasses import asdict

    from inferoptim.economics.currency import Rates
    from inferoptim.economics.gpu_hour import GpuHour, OwnedNode, Rental, owned_gpu_hour, rented_gpu_hour
    from inferoptim.economics.prices import load_catalogue
    from inferoptim.economics.tco import compare_offers, lifetime, total_cost

    catalogue, exchange = load_catalogue(prices), Rates.parse(rate or ())
    offers = [catalogue.find(name) for name in (offer or GUIDE_1_2)]
    money = (currency or offers[0].currency).upper()
    hourly: list[tuple[str, GpuHour, int]] = []
    for item in offers:
        factor = exchange.factor(item.currency, money)
        if item.is_purchase_of_hardware:
            node = OwnedNode(
                capex=item.price * factor, gpus=item.gpus_per_node, years=years, currency=money,
                cost_of_capital=cost_of_capital, residual_share=residual, power_w=power, pue=pue, kwh_price=kwh_price,
                hosting_per_month=hosting, support_share=support, staff_per_year=staff,
            )  # fmt: skip
            hourly.append((item.id, owned_gpu_hour(node), item.gpus_per_node))
        else:
            hourly.append(
                (
                    item.id,
                    rented_gpu_hour(Rental(item.per_gpu_hour * factor, money, item.mode)),
                    item.gpus_per_node,
                )
            )
    rows = compare_offers([(name, price.total, size) for name, price, size in hourly], hours=hours)
    table = Table(
        f"One node, {hours:,.0f} h a year, {money}",
        ["offer", "mode", "per GPU·h", "per node·h", "per year", "per GPU, against the first", "seen"],
        [
            [
                r.label,
                o.mode,
                r.per_gpu_hour,
                r.per_node_hour,
                r.per_year,
                f"{r.gap:+.1%}" if i else "—",
                o.seen.isoformat(),
            ]
            for i, (r, o) in enumerate(zip(rows, offers, strict=True))
        ],
    )
    horizon: list[dict[str, Any]] = []
    for (name, price, size), item in zip(hourly, offers, strict=True):
        owned = item.is_purchase_of_hardware
        result = total_cost(
            price_per_gpu_hour=price.total, gpus=gpus, gpus_per_node=size, years=years, currency=money,
            hours_per_year=8760 if owned else hours, growth_per_year=growth,
            price_change_per_year=0.0 if owned else price_change, run_cost_per_year=run_cost, one_off=one_off,
            discount_rate=discount,
        )  # fmt: skip
        horizon.append({"offer": name, "total": result.total, "present_value": result.present_value,
                        "years": [{**asdict(y), "total": y.total} for y in result.years]})  # fmt: skip
    over = Table(
        f"{gpus:g} GPUs needed, whole nodes, {years} years, {money}",
        ["offer", "total", f"present value at {discount:.0%}", "GPUs paid, last year"],
        [[h["offer"], h["total"], h["present_value"], h["years"][-1]["gpus"]] for h in horizon],
    )
    tables = [table, over]
    for (name, price, _), item in zip(hourly, offers, strict=True):
        if item.is_purchase_of_hardware:
            lines = [[t.name, t.per_gpu_hour, t.basis] for t in price.terms]
            tables.append(Table(f"One GPU hour of {name}, {money}", ["term", "per GPU-hour", "basis"], lines))
    notes = [warning for item in offers if (warning := catalogue.warning(item))]
    notes += [f"{item.id}: {item.note}" for item in offers if item.note]
    if any(h > 0 for h in (power, hosting, staff, support)) and not any(
        o.is_purchase_of_hardware for o in offers
    ):
        raise ConfigError(
            "owned-node terms were given, but no offer is a purchase (e.g. --offer dgx-h100-purchase)"
        )
    life = None
    if training_cost is not None:
        monthly = horizon[0]["total"] / years / 12
        life = lifetime(training_cost=training_cost, inference_per_month=monthly, months=12 * years)
        equal = (
            "not within the horizon"
            if life.months_to_equal is None
            else f"after {life.months_to_equal:.1f} months"
        )
        tables.append(
            Table(
                f"Training against inference on {offers[0].id}, {money}",
                ["training", "inference", "inference share", "inference has cost as much"],
                [[life.training, life.inference, f"{life.inference_share:.1%}", equal]],
            )
        )
    result_json = {
        "currency": money,
        "offers": [{**asdict(r), "gpu_hour": p.as_dict(), "offer": o.as_dict()} for r, (_, p, _), o in zip(rows, hourly, offers, strict=True)],
        "horizon": horizon,
        "lifetime": asdict(life) if life else None,
    }  # fmt: skip
    emit(result_json, tables, json=json, csv=csv, notes=notes)
