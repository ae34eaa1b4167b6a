"""``inferoptim compare``: same quality, faster? The gate for a pull request."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inferoptim.cli.money import Table, emit

if TYPE_CHECKING:
    from inferoptim.build.compare import Comparison


def compare(
    a: Annotated[
        str, typer.Argument(help="The reference: a model, an artefact folder, or an endpoint's URL.")
    ],
    b: Annotated[str, typer.Argument(help="What would replace it.")],
    tasks: Annotated[
        Path | None,
        typer.Option(
            "--tasks",
            help="Questions as JSON lines: prompt, with choices and answer, or regex. Default: 50 shipped ones, English and French.",
        ),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            "--texts",
            help="Texts for the perplexity, one a line. Default: the shipped texts that calibration never sees.",
        ),
    ] = None,
    runs: Annotated[
        int, typer.Option("--runs", min=0, help="Timed runs of each side; 0: speed is not measured.")
    ] = 5,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Requests of a timed run.")] = 8,
    output_tokens: Annotated[int, typer.Option("--output-tokens", min=1, help="New tokens of each.")] = 32,
    max_perplexity_increase: Annotated[
        float, typer.Option("--max-perplexity-increase", min=0, help="Relative; beyond it the command fails.")
    ] = 0.02,
    max_accuracy_drop: Annotated[
        float,
        typer.Option(
            "--max-accuracy-drop", min=0, max=1, help="In points of 1; beyond it the command fails."
        ),
    ] = 0.05,
    min_speedup: Annotated[
        float | None, typer.Option("--min-speedup", help="Least output tokens/s of B over A.")
    ] = None,
    price_per_hour: Annotated[
        float | None,
        typer.Option(
            "--price-per-hour", min=0, help="Of the machine that runs both, for the cost of a token."
        ),
    ] = None,
    currency: Annotated[str, typer.Option("--currency", help="Of that price.")] = "EUR",
    api_key_file: Annotated[Path | None, typer.Option("--api-key-file", help="Key for endpoints.")] = None,
    junit: Annotated[Path | None, typer.Option("--junit", help="Write the checks as JUnit XML.")] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Write a table for a pull request.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compare two models, artefacts or endpoints: quality with paired statistics, speed and cost side by side.

    Exit status 1 when B loses more than the limits allow. Beside every "no loss" stands the smallest loss that this sample
    could have shown.
    """
    from inferoptim.bench.corpus import LANGUAGES, paragraphs
    from inferoptim.build.compare import Limits, measure, time_sides
    from inferoptim.build.compare import compare as put_together
    from inferoptim.build.compare_report import junit_xml, markdown_table
    from inferoptim.build.prove import distribution_of_sides
    from inferoptim.build.sides import not_as_on_a_gpu, open_side
    from inferoptim.build.tasks import read_tasks
    from inferoptim.cli.progress import counted_progress
    from inferoptim.config import create_validated
    from inferoptim.errors import ConfigError
    from inferoptim.records.writer import write_atomic

    limits = create_validated(
        Limits,
        {
            "perplexity_increase": max_perplexity_increase,
            "accuracy_drop": max_accuracy_drop,
            "speedup": min_speedup,
        },
    )
    if min_speedup is not None and runs == 0:
        raise ConfigError("--min-speedup needs timed runs: set --runs 3 or more")
    read = read_tasks(tasks)
    if texts is None:
        shown = [text for lang in LANGUAGES for text in paragraphs(lang)[1::2]]
    else:
        try:
            shown = [line for line in texts.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read {texts}: {error}") from error
        if len(shown) < 2:
            raise ConfigError(f"{texts}: {len(shown)} text in it; an interval needs at least two")
    try:
        key = None if api_key_file is None else api_key_file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"cannot read {api_key_file}: {error.strerror}") from error
    prompts = [paragraphs("en")[i % len(paragraphs("en"))] for i in range(concurrency)]
    with counted_progress() as show:
        first, second = open_side(a, key), open_side(b, key)
        measured_a, measured_b = measure(first, shown, read, show), measure(second, shown, read, show)
        speeds = time_sides(first, second, prompts, output_tokens, runs, show) if runs else None
        first.close()
        second.close()
        distribution = distribution_of_sides(a, b, shown, progress=show)
    result = put_together(
        measured_a,
        measured_b,
        limits,
        speeds=speeds,
        distribution=distribution,
        price_per_hour=price_per_hour,
        currency=currency if price_per_hour is not None else "",
        notes=[line for line in map(not_as_on_a_gpu, (a, b)) if line],
    )
    if junit is not None:
        write_atomic(junit, junit_xml(result))
    if markdown is not None:
        write_atomic(markdown, markdown_table(result))
    _print(result, json=json)
    if not result.passed:
        raise typer.Exit(1)


def _print(result: Comparison, *, json: bool) -> None:
    from inferoptim.build.compare_report import rows

    checks = [("passed" if c.passed else "FAILED", c.name, c.detail) for c in result.checks]
    emit(
        result.model_dump(mode="json"),
        [
            Table(
                "", ("", "A", "B", "B against A"), [(r.name, r.a, r.b, r.difference) for r in rows(result)]
            ),
            Table("Checks", ("", "", ""), checks),
        ],
        json=json,
        csv=False,
        notes=[f"A = {result.a}; B = {result.b}; {result.tokens} tokens of text", *result.notes],
    )
