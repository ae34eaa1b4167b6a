"""What the money commands share: options written once, prices resolved once, tables printed one way."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inferoptim.errors import ConfigError

if TYPE_CHECKING:
    from inferoptim.economics.gpu_hour import GpuHour

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print the main table as CSV.")]
Prices = Annotated[
    Path | None,
    typer.Option("--prices", help="TOML catalogue that overrides the shipped one, offer by offer."),
]
Rate = Annotated[
    list[str] | None, typer.Option("--rate", help="Exchange rate, e.g. EURUSD=1.16; repeatable.")
]
Currency = Annotated[
    str | None, typer.Option("--currency", help="Currency of the output; default: the price's.")
]


@dataclass(frozen=True)
class Table:
    """One table to print: a title, column names, rows of text or numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


def emit(
    result: Mapping[str, Any], tables: Sequence[Table], *, json: bool, csv: bool, notes: Sequence[str] = ()
) -> None:
    """Print as JSON (everything), CSV (the first table) or rich tables with the notes below.

    Raises:
        ConfigError: both JSON and CSV were asked.
    """
    if json and csv:
        raise ConfigError("--json and --csv exclude each other")
    if json:
        typer.echo(
            json_module.dumps({**result, "notes": list(notes)}, indent=2, ensure_ascii=False, default=str)
        )
        return
    if csv:
        import csv as csv_module
        import sys

        writer = csv_module.writer(sys.stdout, lineterminator="\n")
        writer.writerow(tables[0].columns)
        writer.writerows(["" if cell is None else cell for cell in row] for row in tables[0].rows)
        return
    from rich.console import Console

    from inferoptim.cli.console_table import print_table

    console = Console()
    for table in tables:
        right = [
            index > 0 and all(isinstance(row[index], int | float | None) for row in table.rows)
            for index in range(len(table.columns))
        ]
        print_table(
            console, table.title, table.columns, [[number(cell) for cell in row] for row in table.rows], right
        )
    for note in notes:
        console.print(f"• {note}", markup=False, highlight=False)


def number(cell: Any) -> str:
    """A cell as a person reads it: four digits that matter, thousands apart; None is 'not measured'."""
    if cell is None:
        return "not measured"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, float):
        if cell != cell:
            return "–"
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.4g}"
    return str(cell)


def plus_minus(value: float, low: float | None, high: float | None) -> str:
    """'0.21 [0.19, 0.23]', or the value alone where no interval is known."""
    if low is None or high is None or low == high:
        return number(value)
    return f"{number(value)} [{number(low)}, {number(high)}]"


@dataclass(frozen=True)
class Priced:
    """A price of one GPU-hour, where it came from, and what to warn about."""

    hour: GpuHour
    gpus_per_node: int
    source: str
    warnings: tuple[str, ...] = ()
    provider: str = ""
    region: str = ""


def resolve_offer(
    name: str, prices: Path | None, currency: str | None, rates: Sequence[str] | None
) -> Priced:
    """An offer of the catalogue as the price of a GPU-hour in the wanted currency.

    Raises:
        ConfigError: unknown offer, a purchase (it must be amortised), or no rate between the currencies.
    """
    from inferoptim.economics.currency import Rates
    from inferoptim.economics.gpu_hour import Rental, rented_gpu_hour
    from inferoptim.economics.prices import load_catalogue

    catalogue = load_catalogue(prices)
    offer = catalogue.find(name)
    wanted = (currency or offer.currency).upper()
    price = Rates.parse(rates or ()).convert(offer.per_gpu_hour, offer.currency, wanted)
    stale = catalogue.warning(offer)
    source = f"{offer.provider}, {offer.name}, seen {offer.seen.isoformat()} ({offer.source})"
    hour = rented_gpu_hour(Rental(price, wanted, offer.mode))
    warnings = (stale,) if stale else ()
    return Priced(hour, offer.gpus_per_node, source, warnings, offer.provider, offer.region)


def parse_assignment(text: str) -> tuple[str, Any]:
    """Read ``name=value``, ``name=low:mode:high`` or ``name=low:mode:high:shape``.

    Raises:
        ConfigError: another form.
    """
    name, equals, value = text.partition("=")
    parts = value.split(":")
    if not equals or not value or len(parts) not in (1, 3, 4):
        raise ConfigError(
            f"{text!r}: write it as name=value, or name=low:mode:high[:triangular|uniform|measured]"
        )
    try:
        numbers = [float(part) for part in parts[:3]]
    except ValueError:
        raise ConfigError(f"{text!r}: {value!r} is not a number or a range low:mode:high") from None
    name = name.strip().replace("-", "_")
    if len(numbers) == 1:
        return name, numbers[0]
    spread: dict[str, Any] = dict(zip(("low", "mode", "high"), numbers, strict=True))
    if len(parts) == 4:
        spread["shape"] = parts[3]
    return name, spread
