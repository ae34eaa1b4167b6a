"""``inferoptim prices``: the dated catalogue, API list prices, and catalogues of others imported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inferoptim.cli.money import Csv, Json, Prices, Table, emit
from inferoptim.errors import ConfigError

prices = typer.Typer(
    help="The price list: each price with its date and source.", no_args_is_help=True, add_completion=False
)


@prices.command("list")
def list_(
    gpu: Annotated[str | None, typer.Option("--gpu", help="Only offers of this GPU, cheapest first.")] = None,
    prices: Prices = None,
    json: Json = False,
    csv: Csv = False,
) -> None:
    """GPU offers with their date and source; stale ones are warned about."""
    from inferoptim.economics.prices import load_catalogue

    catalogue = load_catalogue(prices)
    offers = catalogue.for_gpu(gpu) if gpu else list(catalogue.offers.values())
    full = Table(
        "GPU offers",
        ["offer", "provider", "name", "GPU", "mode", "GPUs", "price", "currency", "unit", "per GPU·h", "seen", "source"],
        [
            [
                o.id, o.provider, o.name, o.gpu, o.mode, o.gpus_per_node, o.price, o.currency, o.unit,
                None if o.is_purchase_of_hardware else o.per_gpu_hour, o.seen.isoformat(), o.source,
            ]
            for o in offers
        ],
    )  # fmt: skip
    short = Table(
        "GPU offers",
        ["offer", "GPU", "mode", "per GPU·h", "", "seen"],
        [
            [
                o.id, o.gpu, o.mode, f"{o.price:,.0f} a node" if o.is_purchase_of_hardware else f"{o.per_gpu_hour:.2f}",
                o.currency, o.seen.isoformat(),
            ]
            for o in offers
        ],
    )  # fmt: skip
    notes = [warning for o in offers if (warning := catalogue.warning(o))]
    result = {
        "origin": catalogue.origin,
        "offers": [{**o.as_dict(), "warning": catalogue.warning(o)} for o in offers],
    }
    notes.append("sources: --csv or --json")
    emit(result, [full if csv else short], json=json, csv=csv, notes=notes)


@prices.command("api")
def api(
    models: Annotated[list[str], typer.Argument(help="Model, or provider/model.")],
    json: Json = False,
    csv: Csv = False,
) -> None:
    """List prices of hosted APIs, USD per million tokens: input, cached input, output."""
    from inferoptim.economics.api_prices import api_price

    found = [api_price(model) for model in models]
    rows = [
        [
            f"{p.provider}/{p.model}",
            p.input,
            p.cached_input if p.cached_input is not None else "none listed",
            p.output,
            p.source,
        ]
        for p in found
    ]
    columns = ["model", "input", "cached input", "output", "source"]
    notes = [f"{p.model}: {p.note}" for p in found if p.note]
    emit(
        {"currency": "USD", "models": [p.as_dict() for p in found]},
        [Table("USD per million tokens", columns, rows)],
        json=json,
        csv=csv,
        notes=notes,
    )


@prices.command("import")
def import_(
    catalogue: Annotated[Path, typer.Argument(help="SkyPilot-style vms.csv.")],
    provider: Annotated[str, typer.Option("--provider", help="Whose prices they are.")],
    seen: Annotated[
        str, typer.Option("--seen", help="Day the catalogue was fetched, YYYY-MM-DD: it does not say.")
    ],
    out: Annotated[Path, typer.Option("--out", help="TOML catalogue to write, for --prices.")],
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="Only accelerators whose name contains this.")
    ] = None,
    region: Annotated[str | None, typer.Option("--region", help="Only this region.")] = None,
    source: Annotated[
        str | None, typer.Option("--source", help="Where it came from; default: the file's name.")
    ] = None,
    json: Json = False,
) -> None:
    """Turn a SkyPilot-style CSV into a price catalogue."""
    import datetime as dt

    from inferoptim.economics.prices_import import offers_from_skypilot, offers_to_toml
    from inferoptim.records.writer import write_atomic

    try:
        day = dt.date.fromisoformat(seen)
    except ValueError:
        raise ConfigError(f"--seen {seen!r} is not a date (YYYY-MM-DD)") from None
    try:
        text = catalogue.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{catalogue}: cannot read it ({error})") from error
    offers = offers_from_skypilot(
        text, provider=provider, seen=day, source=source or catalogue.name, gpu=gpu, region=region
    )
    if not offers:
        raise ConfigError(f"{catalogue}: no priced accelerator" + (f" matches {gpu!r}" if gpu else ""))
    write_atomic(out, offers_to_toml(offers))
    rows = [[o.id, o.gpu, o.mode, o.gpus_per_node, o.price] for o in offers[:20]]
    more = [f"and {len(offers) - 20} more"] if len(offers) > 20 else []
    tables = [
        Table(f"{len(offers)} offers written to {out}", ["offer", "GPU", "mode", "GPUs", "USD/node·h"], rows)
    ]
    emit(
        {"written": str(out), "offers": [o.as_dict() for o in offers]},
        tables,
        json=json,
        csv=False,
        notes=more,
    )
