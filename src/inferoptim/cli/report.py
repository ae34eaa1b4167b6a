"""``inferoptim report``: summary and report of a results folder, written again from its records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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
    from inferoptim.report.economics_section import write_economics
    from inferoptim.report.write_report import check_language, write_report

    language = check_language(lang)
    summarise_again(folder, price_per_hour=price, currency=currency, price_source=price_source)
    write_economics(folder)
    typer.echo(f"report: {write_report(folder, language)}")
