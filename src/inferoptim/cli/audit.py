"""``inferoptim audit``: what a request log says about the traffic, and a workload file made from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inferoptim.errors import ConfigError

if TYPE_CHECKING:
    from inferoptim.audit.phases import Machine
    from inferoptim.audit.run import AuditOptions
    from inferoptim.records.audit_record import AuditRecord
    from inferoptim.records.workload_file import Workload

DEFAULT_MODEL, DEFAULT_GPU = "Llama-3.1-8B", "H100 SXM"


def audit(
    trace: Annotated[
        list[Path],
        typer.Argument(help="Request log: CSV, JSON lines, JSON array or Parquet; .gz and .zst too."),
    ],
    html: Annotated[Path | None, typer.Option("--html", help="Write the report here.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
    language: Annotated[str, typer.Option("--lang", help="Of console and HTML: en or fr.")] = "en",
    map: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            help="FIELD=COLUMN where a name is not known: arrival, prompt, output, duration, ttft, status, finish, "
            "session, model, text. A path into JSON is written with dots.",
        ),
    ] = None,
    time_unit: Annotated[
        str | None, typer.Option("--time-unit", help="Of numeric arrival times: s, ms, us or ns.")
    ] = None,
    timezone: Annotated[
        str | None, typer.Option("--timezone", help="Of dates that state none, and of the daily profile.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse the trace at its first unreadable row.")
    ] = False,
    redact: Annotated[
        bool,
        typer.Option(
            "--redact/--no-redact", help="Keep lengths and salted hashes only, or short excerpts as well."
        ),
    ] = True,
    tokenizer: Annotated[
        list[str] | None,
        typer.Option(
            "--tokenizer",
            help="Counts the text: model name, folder, tokenizer.json, FILE.tiktoken or mistral:tekken|v1|v2|v3. "
            "Repeatable; the first one counts the trace.",
        ),
    ] = None,
    parallel: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            "--parallel", help="English and French text, line by line the same; default: the shipped one."
        ),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", help="For the floors: known name, Hub id, folder.")
    ] = DEFAULT_MODEL,
    gpu: Annotated[str, typer.Option("--gpu", help="For the floors.")] = DEFAULT_GPU,
    precision: Annotated[str, typer.Option("--precision", help="Of the weights.")] = "bf16",
    kv: Annotated[str, typer.Option("--kv", help="Precision of the KV-cache.")] = "bf16",
    batch: Annotated[
        float | None, typer.Option("--batch", help="Requests at once; default: what the trace shows.")
    ] = None,
    ttft_ms: Annotated[
        float | None,
        typer.Option("--ttft-ms", help="Stated time to first token, where the trace has no durations."),
    ] = None,
    tpot_ms: Annotated[
        float | None, typer.Option("--tpot-ms", help="Stated time per output token, likewise.")
    ] = None,
    price_input: Annotated[
        float | None,
        typer.Option("--price-input", help="Price of a million input tokens, for the prompt diet."),
    ] = None,
    currency: Annotated[str, typer.Option("--currency", help="Of that price.")] = "EUR",
    save_workload: Annotated[
        Path | None,
        typer.Option("--save-workload", help="Write a small replayable workload (no text in it)."),
    ] = None,
    requests: Annotated[int, typer.Option("--requests", help="Of the workload.")] = 256,
    sample: Annotated[
        str,
        typer.Option(
            "--sample",
            help="rows: lengths and gaps at random; window: the most typical stretch as it came; auto: window where "
            "prefixes are known.",
        ),
    ] = "auto",
    name: Annotated[str | None, typer.Option("--name", help="Of the workload; default: the file's.")] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", help="Of the trace, noted in the workload.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of every sample.")] = 0,
    offline: Annotated[bool, typer.Option("--offline", help="Use only what is on this machine.")] = False,
) -> None:
    """Read a request log as a stream: lengths, bursts, concurrency, prefix reuse, languages, which levers can pay.

    Azure, BurstGPT, Mooncake, ShareGPT, OpenAI logs, vLLM, GuideLLM, AIPerf and trtllm-bench data sets are recognised;
    --map names the columns of anything else. Nothing leaves the machine.
    """
    from inferoptim.audit.formats import SECONDS, parse_map
    from inferoptim.audit.options import ReadOptions
    from inferoptim.audit.run import AuditOptions
    from inferoptim.audit.sample import SampleOptions
    from inferoptim.audit.text_cost import parallel_text
    from inferoptim.audit.token_counter import open_tokenizer
    from inferoptim.economics.checks import positive
    from inferoptim.report.language import CATALOGUES

    if language not in CATALOGUES:
        raise ConfigError(f"--lang {language!r}: one of {', '.join(CATALOGUES)}")
    if time_unit is not None and time_unit not in ("s", "ms", "us", "ns"):
        raise ConfigError(f"--time-unit {time_unit!r}: one of {', '.join(SECONDS)}")
    if (ttft_ms is None) != (tpot_ms is None):
        raise ConfigError("--ttft-ms and --tpot-ms belong together: both make a request's duration")
    stated = {}
    if ttft_ms is not None and tpot_ms is not None:
        stated = {
            "ttft_s": positive("--ttft-ms", ttft_ms) / 1e3,
            "tpot_s": positive("--tpot-ms", tpot_ms) / 1e3,
        }
    if price_input is not None:
        positive("--price-input", price_input)
    counters = tuple(open_tokenizer(t, offline=offline) for t in tokenizer or ())
    english, french = parallel or (None, None)
    wanted = None
    if save_workload is not None:
        wanted = SampleOptions(name or _stem(save_workload), requests, sample, seed, licence)
    options = AuditOptions(
        read=ReadOptions(parse_map(map or ()), time_unit, timezone),
        strict=strict,
        redact=redact,
        tokenizers=counters,
        parallel=parallel_text(english, french) if counters else {},
        parallel_source=f"{english.name}, {french.name}" if english and french else "inferoptim/audit/texts",
        machine=_machine(model, gpu, precision, kv, batch, offline),
        stated=stated,
        sample=wanted,
        price_per_million=price_input,
        currency=currency.upper(),
        seed=seed,
    )
    record, workload = _run(trace, options)
    if json:
        typer.echo(record.model_dump_json(indent=2))
    else:
        _print(record, language)
    # files last: a full disk does not cost the figures
    for line in _write(record, workload, html, save_workload, language):
        typer.echo(line, err=json)
    if record.trace.partial == "interrupted":
        raise typer.Exit(130)


def _stem(path: Path) -> str:
    return path.name.removesuffix(".jsonl")


def _machine(model: str, gpu: str, precision: str, kv: str, batch: float | None, offline: bool) -> Machine:
    from inferoptim.audit.phases import Machine
    from inferoptim.economics.checks import positive
    from inferoptim.hardware.peaks import device_peaks
    from inferoptim.planner.kv import model_facts

    facts = model_facts(model, offline=offline)
    if facts.shape is None:
        raise ConfigError(
            f"--model {model}: its config alone does not give the number of weights; choose a dense model"
        )
    if batch is not None:
        positive("--batch", batch)
    return Machine(facts.shape, device_peaks(gpu), precision, kv, batch)


def _run(trace: list[Path], options: AuditOptions) -> tuple[AuditRecord, Workload | None]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from inferoptim.audit.run import audit_trace

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("reading", total=None)

        def show(done: int, total: int, rows: int) -> None:
            bars.update(task, completed=done, total=total, description=f"{rows:,} requests")

        return audit_trace(trace, options, show)


def _write(
    record: AuditRecord, workload: Workload | None, html: Path | None, save: Path | None, language: str
) -> list[str]:
    """Write what was asked for; one line about each file.

    Raises:
        ConfigError, CapacityError: it cannot be written; nothing half-written is left.
    """
    lines = []
    if save is not None and workload is not None:
        from inferoptim.records.workload_file import format_workload

        _save(save, format_workload(workload))
        distance = ", ".join(f"{name} {value:.3f}" for name, value in workload.header.ks.items())
        lines.append(
            f"workload {save}: {len(workload.requests)} requests, {workload.header.arrivals}, "
            f"fingerprint {workload.fingerprint}; KS distance from the trace: {distance}"
        )
    if html is not None:
        from inferoptim.report.audit_page import render_audit
        from inferoptim.report.language import Language

        _save(html, render_audit(record, Language("fr" if language == "fr" else "en")))
        lines.append(f"report {html}")
    return lines


def _save(path: Path, text: str) -> None:
    from inferoptim.errors import CapacityError
    from inferoptim.records.writer import write_atomic

    try:
        write_atomic(path, text)
    except CapacityError as error:
        raise CapacityError(
            f"disk full while writing {path}: nothing was left half-written; free some space and repeat the command"
        ) from error
    except ConfigError as error:
        raise ConfigError(
            f"cannot write {path}: choose a file in a folder that exists and can be written"
        ) from error


def _print(record: AuditRecord, code: str) -> None:
    from rich.console import Console

    from inferoptim.cli.console_table import print_table
    from inferoptim.report import audit_sentences as sentences
    from inferoptim.report import audit_tables as tables
    from inferoptim.report.audit_page import audit_notes
    from inferoptim.report.language import Language
    from inferoptim.report.table import Table

    language: Any = Language("fr" if code == "fr" else "en")
    console = Console()
    if record.trace.partial:
        console.print(sentences.partial_sentence(record, language), style="bold", markup=False)
    console.print(sentences.lead(record, language), markup=False, highlight=False)

    def show(title: str, table: Table | None) -> None:
        if table is None:
            return
        words = any(len(cell.value) > 40 for row in table.rows for cell in row.cells)
        rows = []
        for row in table.rows:
            cells = [
                (c.value + (f" [{c.interval}]" if c.interval else "")) if c else language("not_measured")
                for c in row.cells
            ] or [row.note]
            rows.append([row.heading, *cells])
        right = [False, *(not words for _ in table.columns)]
        print_table(console, language(title), [table.heading, *table.columns], rows, right)

    show("audit.section.lengths", tables.lengths_table(record, language))
    show("audit.section.lengths", tables.shape_table(record, language))
    show("audit.section.arrivals", tables.arrivals_table(record, language))
    show("audit.section.concurrency", tables.concurrency_table(record, language))
    show("audit.section.prefix", tables.prefix_table(record, language))
    show("audit.section.prefix", tables.curve_table(record, language, 6))
    show("audit.section.conversations", tables.conversations_table(record, language))
    show("audit.section.conversations", tables.languages_table(record, language))
    show("audit.section.roofline", tables.roofline_table(record, language))
    show("audit.section.levers", tables.levers_table(record, language))
    show("audit.section.text", tables.density_table(record, language))
    show("audit.section.text", tables.latency_table(record, language))
    show("audit.section.diet", tables.diet_table(record, language))
    show("audit.section.rows", tables.bad_rows_table(record, language))
    for note in audit_notes(record, language):
        console.print(f"• {note}", markup=False, highlight=False)
