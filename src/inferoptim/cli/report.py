"""``inferoptim report``: summary and report of a results folder, written again from its records."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from inferoptim.report.language import LanguageCode


def report(
    folder: Annotated[Path, typer.Argument(help="A results folder of `inferoptim bench`.")],
    lang: Annotated[str, typer.Option("--lang", help="Language of the report: en or fr.")] = "en",
    price: Annotated[
        float | None, typer.Option("--price-per-hour", help="Price the run anew at this price.")
    ] = None,
    currency: Annotated[str | None, typer.Option("--currency", help="Of that price.")] = None,
    price_source: Annotated[
        str | None, typer.Option("--price-source", help="Where the price comes from.")
    ] = None,
) -> None:
    """Write report.html and report.md again: another language, another price, or after an update.

    Nothing is measured: the report is a function of the folder's records.
    """
    from inferoptim.bench.summary import summarise_again
    from inferoptim.report.write_report import check_language

    language = check_language(lang)
    summarise_again(folder, price_per_hour=price, currency=currency, price_source=price_source)
    typer.echo(f"report: {publish(folder, language)}")


def publish(folder: Path, language: LanguageCode) -> Path:
    """Price and report a summarised folder; the path of report.html."""
    from inferoptim.report.economics_section import write_economics
    from inferoptim.report.write_report import write_report

    write_economics(folder)
    return write_report(folder, language)
