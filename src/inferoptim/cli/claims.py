"""``inferoptim claims`` and ``inferoptim lint``: the guide's figures judged, and any published row held to physics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inferoptim.cli.money import Csv, Json, Table, emit
from inferoptim.errors import ConfigError

if TYPE_CHECKING:
    from inferoptim.economics.lint import Row
    from inferoptim.economics.roofline import Shape


def claims(
    number: Annotated[list[int] | None, typer.Argument(help="Only these rows; default: all.")] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="Bench run: its measured values beside the guide's.")
    ] = None,
    tokenizer: Annotated[
        list[Path] | None,
        typer.Option("--tokenizer", help="tokenizer.json or its folder: measure the claims about tokens."),
    ] = None,
    text_en: Annotated[
        Path | None, typer.Option("--text-en", help="English text; default: the bench's own.")
    ] = None,
    text_fr: Annotated[Path | None, typer.Option("--text-fr", help="The same text in French.")] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Also write a self-contained page here.")
    ] = None,
    json: Json = False,
    csv: Csv = False,
) -> None:
    """Every figure of the guide: recomputed or measured here, with its verdict."""
    from collections import Counter

    from inferoptim.economics.claims import CLAIMS, examine_all

    unknown = [n for n in number or () if n not in CLAIMS]
    if unknown:
        raise ConfigError(f"no claim {unknown[0]}: they go from 1 to {max(CLAIMS)}")
    rows = examine_all(_evidence(run, tokenizer or [], text_en, text_fr))
    if html is not None:
        from inferoptim.economics.claims.page import claims_page
        from inferoptim.records.writer import write_atomic

        write_atomic(html, claims_page(rows, run.name if run else ""))
    shown = [row for row in rows if not number or row["number"] in number]
    counts = Counter(row["verdict"] for row in shown)
    table = Table(
        "What the guide claims, checked",
        ["#", "§", "claim", "verdict", "the right statement", "measured here"],
        [
            [r["number"], r["place"][1:], r["claim"], r["verdict"], r["statement"], r["measured_here"]]
            for r in shown
        ],
    )
    if json or csv:
        emit(
            {"run": str(run) if run else None, "counts": dict(counts), "claims": shown},
            [table],
            json=json,
            csv=csv,
        )
        return
    for row in shown:
        _show(row)
    typer.echo(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    if html is not None:
        typer.echo(f"page written: {html}")


_COLOUR = {"holds": "green", "holds with conditions": "yellow", "wrong": "red"}


def _show(row: Mapping[str, Any]) -> None:
    """One claim as four short lines: wide tables fold badly in a terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.padding import Padding

    console = Console(highlight=False)
    colour = _COLOUR.get(row["verdict"], "dim")
    console.print(
        f"[bold]{row['number']:>2}[/]  {row['place']}  {escape(row['claim'])}  [{colour}]{row['verdict']}[/]"
    )
    console.print(Padding(escape(row["statement"]), (0, 0, 0, 4)))
    console.print(Padding(f"measured here: {escape(row['measured_here'])}", (0, 0, 1, 4)), style="dim")


def _evidence(run: Path | None, tokenizers: list[Path], english: Path | None, french: Path | None) -> Any:
    from inferoptim.economics.claims import Evidence

    summary = environment = None
    if run is not None:
        from inferoptim.records.reader import read_run

        folder = read_run(run)
        if folder.summary is None:
            raise ConfigError(
                f"{run}: the run has no summary.json yet: finish it with `inferoptim bench --resume {run}`"
            )
        summary = folder.summary.model_dump(mode="json")
        environment = folder.environment.model_dump(mode="json") if folder.environment else None
    texts = []
    if tokenizers:
        from inferoptim.economics.claims.text import measure

        if (english is None) != (french is None):
            raise ConfigError("give both --text-en and --text-fr (translations of each other), or neither")
        pair = [_read_text(path, name) for path, name in ((english, "english.txt"), (french, "french.txt"))]
        texts = [measure(path, pair[0], pair[1], parallel=english is not None) for path in tokenizers]
    elif english or french:
        raise ConfigError("--text-en and --text-fr need --tokenizer")
    return Evidence(summary=summary, environment=environment, run=run.name if run else "", texts=tuple(texts))


def _read_text(path: Path | None, default: str) -> str:
    if path is None:
        from importlib import resources

        return (resources.files("inferoptim.bench") / "texts" / default).read_text(encoding="utf-8")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read it ({error})") from error


def lint(
    model: Annotated[
        str | None, typer.Option("--model", help="Known name (Llama-3.1-8B), or a label with --config.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="config.json of a dense decoder.")] = None,
    parameters: Annotated[
        float | None,
        typer.Option("--parameters", help="Weights read per token (active experts; no input embedding)."),
    ] = None,
    precision: Annotated[
        str, typer.Option("--precision", help="Of the weights: fp16, bf16, fp8, int8, int4 …")
    ] = "bf16",
    card: Annotated[str, typer.Option("--card", help="GPU, e.g. 'H100 SXM'.")] = "H100 SXM",
    gpus: Annotated[int, typer.Option("--gpus")] = 1,
    input_tokens: Annotated[int, typer.Option("--input-tokens", help="Per request.")] = 0,
    output_tokens: Annotated[int | None, typer.Option("--output-tokens", help="Per request.")] = None,
    latency_ms: Annotated[float | None, typer.Option("--latency-ms", help="Whole request.")] = None,
    throughput: Annotated[
        float | None, typer.Option("--throughput", help="Output tokens/s, all requests.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", help="Requests in flight, if published.")
    ] = None,
    memory_gb: Annotated[float | None, typer.Option("--memory-gb", help="Published use per GPU.")] = None,
    tokens_per_step: Annotated[
        float,
        typer.Option("--tokens-per-step", help="Above 1 with speculative decoding: mean tokens per step."),
    ] = 1.0,
    guide: Annotated[bool, typer.Option("--guide-5.2", help="Check the guide's own table 5.2.")] = False,
    json: Json = False,
    csv: Csv = False,
) -> None:
    """Is a published benchmark row possible? Names the physical bound that it breaks; exit status 1 if it does.

    Example: inferoptim lint --model TinyLlama-1.1B --precision fp16 --card "RTX 4070" --input-tokens 100
    --output-tokens 200 --latency-ms 260.3 --throughput 2723.2
    """
    from inferoptim.economics.claims.levers import guide_5_2
    from inferoptim.economics.lint import Row, compare_rows, lint_row
    from inferoptim.hardware.peaks import device_peaks

    rows: tuple[Row, ...]
    if guide:
        rows = guide_5_2()
    else:
        if output_tokens is None:
            raise ConfigError("--output-tokens is missing: without it no number of steps is known")
        rows = (
            Row(
                _shape(model, config, parameters), precision, device_peaks(card), output_tokens, input_tokens,
                None if latency_ms is None else latency_ms / 1e3, throughput, concurrency, gpus,
                None if memory_gb is None else memory_gb * 1e9, tokens_per_step, model or "row",
            ),
        )  # fmt: skip
    verdicts = [lint_row(row) for row in rows]
    together = compare_rows(rows)
    word = {True: "kept", False: "BROKEN", None: "–"}
    lines = [[v.row.label, c.name, word[c.kept], c.text] for v in verdicts for c in v.checks]
    if together is not None:
        lines.append(["all rows", together.name, word[together.kept], together.text])
    notes = [
        f"{v.row.label}: " + ("possible (no bound broken; that is not proof)" if v.possible else
        "IMPOSSIBLE, breaks " + "; ".join(c.name for c in v.broken))
        for v in verdicts
    ]  # fmt: skip
    result = {
        "possible": all(v.possible for v in verdicts),
        "rows": [v.as_dict() for v in verdicts],
        "equal_work": None if together is None else together.kept,
    }
    title = f"{rows[0].shape.name}, {rows[0].precision}, {rows[0].gpus} × {rows[0].device.name}"
    emit(result, [Table(title, ["row", "bound", "", "why"], lines)], json=json, csv=csv, notes=notes)
    if not result["possible"]:
        raise typer.Exit(1)


def _shape(model: str | None, config: Path | None, parameters: float | None) -> Shape:
    from inferoptim.economics.checks import positive
    from inferoptim.economics.roofline import Shape, find_shape

    if sum(given is not None for given in (config, parameters)) > 1:
        raise ConfigError("give --config or --parameters, not both")
    if parameters is not None:
        weights = positive("--parameters", parameters)
        return Shape(model or f"{weights / 1e9:g}B", weights, 0, 0, 0, 0, 0, 0, "stated")
    if config is not None:
        from inferoptim.planner.kv import dense_parameters, read_config

        shape = dense_parameters(read_config(config), model or config.parent.name or "model")
        if shape is None:
            raise ConfigError(
                f"{config}: not a plain dense decoder; give --parameters (weights read per token)"
            )
        return shape
    if model is None:
        raise ConfigError("name the model: --model, --config FILE or --parameters N")
    return find_shape(model)
