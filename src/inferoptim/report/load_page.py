"""The load test's page: `load.json` and `requests.jsonl` in, one self-contained `load.html` out. Same records, same bytes."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup
from pydantic import ValidationError

from inferoptim.errors import ConfigError, DataError
from inferoptim.records.load_schema import LoadRequestRecord, LoadStage, LoadSummary, Objectives
from inferoptim.records.writer import write_atomic
from inferoptim.report.language import CATALOGUES, Cell, Language, LanguageCode, clean
from inferoptim.report.load_figures import latency_curves, timeline
from inferoptim.report.table import Row, Table
from inferoptim.report.texts.load import LOAD_TEXTS

TIMELINES = 6  # stages drawn; a search has many


class LoadLanguage(Language):
    """A report language that also knows the words of this page."""

    def __init__(self, code: LanguageCode) -> None:
        super().__init__(code)
        self._texts = {**self._texts, **LOAD_TEXTS[code]}


def write_load_page(folder: Path, language: LanguageCode = "en") -> Path:
    """Write `load.html` into the folder of a load test.

    Raises:
        DataError: load.json or a line of requests.jsonl cannot be read. ConfigError: no such language.
    """
    if language not in CATALOGUES:
        raise ConfigError(f"page language {language!r}: not one of {', '.join(CATALOGUES)}")
    summary, records = read_load(folder)
    write_atomic(folder / "load.html", render(summary, records, LoadLanguage(language)))
    return folder / "load.html"


def read_load(folder: Path) -> tuple[LoadSummary, dict[str, list[LoadRequestRecord]]]:
    """The summary, and the requests by stage.

    Raises:
        DataError: a file is missing or damaged; the line is named.
    """
    path = folder / "load.json"
    try:
        summary = LoadSummary.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); is this the folder of a load test?"
        ) from error
    except ValidationError as error:
        raise DataError(f"{path}: {error.errors()[0]['msg']}") from error
    records: dict[str, list[LoadRequestRecord]] = {stage.name: [] for stage in summary.stages}
    lines = folder / "requests.jsonl"
    if lines.is_file():
        with lines.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    record = LoadRequestRecord.model_validate_json(line)
                except ValidationError as error:
                    raise DataError(f"{lines} line {number}: {error.errors()[0]['msg']}") from error
                records.setdefault(record.stage, []).append(record)
    return summary, records


def render(summary: LoadSummary, records: dict[str, list[LoadRequestRecord]], t: LoadLanguage) -> str:
    """The page."""
    templates = files("inferoptim.report") / "templates"
    environment = Environment(
        loader=DictLoader({"load": (templates / "load.html.j2").read_text(encoding="utf-8")}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    drawn = [s for s in summary.stages if any(r.error is None for r in records.get(s.name, ()))]
    return environment.get_template("load").render(
        t=t,
        css=Markup((templates / "report.css").read_text(encoding="utf-8")),
        summary=summary,
        verdict=_verdict(summary, t),
        stages=_stage_table(summary, t),
        curves=latency_curves(summary, records, t),
        timelines=[
            (f"{clean(s.name)} · {clean(s.shape)}", *timeline(f"timeline-{i}", s, records[s.name], t))
            for i, s in enumerate(drawn[-TIMELINES:], 1)
        ],
        errors=_error_table(summary, t),
        client=_client_table(summary, t),
        allowed=t.seconds(summary.stages[0].client.allowed_lag_s) if summary.stages else "",
        self_test=_self_test(summary, t),
        method=_method(summary, t),
        clean=clean,
    )


def _verdict(summary: LoadSummary, t: LoadLanguage) -> list[str]:
    lines = []
    found = summary.max_rate
    if found is not None:
        words = {
            "objectives": _objectives(summary.objectives, t),
            "attainment": t.percent(summary.objectives.attainment),
        }
        if found.highest_passed_per_s is None:
            lines.append(t("load.max_none", **words))
        else:
            lines.append(t("load.max", rate=t.number(found.highest_passed_per_s), **words))
        if found.lowest_failed_per_s is not None:
            lines.append(t("load.max_failed", rate=t.number(found.lowest_failed_per_s)))
        if found.note:
            lines.append(clean(found.note))
    else:
        lines += [
            t(
                "load.best",
                stage=clean(s.shape),
                rate=_number(s.requests_per_s, t),
                tokens=_number(s.output_tokens_per_s, t),
                failed=t.integer(s.requests - s.succeeded),
                requests=t.integer(s.requests),
            )
            for s in summary.stages
        ]
    if summary.interrupted:
        lines.append(t("load.interrupted"))
    wrong = [clean(s.name) for s in summary.stages if not s.client.valid]
    lines.append(t("load.invalid", stages=t.join(wrong)) if wrong else t("load.valid"))
    return lines


def _number(value: float | None, t: LoadLanguage) -> str:
    return t("not_measured") if value is None else t.number(value)


def _objectives(objectives: Objectives, t: LoadLanguage) -> str:
    bounds = {
        "TTFT": objectives.ttft_s,
        "TPOT": objectives.tpot_s,
        "ITL": objectives.itl_s,
        "E2E": objectives.e2e_s,
    }
    stated = [t("load.bound", metric=m, bound=t.seconds(b)) for m, b in bounds.items() if b is not None]
    return ", ".join(stated) or t("none_stated")


def _stage_table(summary: LoadSummary, t: LoadLanguage) -> Table:
    """One row a measure: stages are few and measures many."""
    stages = summary.stages

    def row(key: str, cell: Any) -> Row:
        return Row(t(key), tuple(cell(s) for s in stages))

    rows = [
        row("load.shape", lambda s: Cell(clean(s.shape))),
        row("load.requests", lambda s: Cell(t.integer(s.requests))),
        row(
            "load.failed", lambda s: Cell(t.integer(s.requests - s.succeeded), tone="bad" if s.errors else "")
        ),
        row("load.requests_per_s", lambda s: t.unit_cell(s.requests_per_s)),
        row("load.output_per_s", lambda s: t.unit_cell(s.output_tokens_per_s)),
    ]
    if summary.objectives.stated:
        rows += [
            row("load.goodput", lambda s: t.unit_cell(s.goodput_per_s)),
            row("load.attainment", lambda s: t.percent_cell(s.attainment)),
            row("load.attainment_late", lambda s: t.percent_cell(s.attainment_late)),
        ]
    for metric in ("ttft", "tpot", "itl", "e2e"):
        for percentile in ("p50", "p95", "p99"):
            if any(percentile in getattr(s, f"{metric}_s") for s in stages):
                rows.append(_percentile_row(metric, percentile, stages, t))
    if any(_jitter(s) is not None for s in stages):
        rows.append(row("load.jitter", lambda s: t.unit_cell(_jitter(s))))
    rows += [
        row("load.prompt_tokens", lambda s: t.unit_cell(s.prompt_tokens_p50)),
        row("load.output_tokens", lambda s: t.unit_cell(s.output_tokens_p50)),
        row("load.cached", lambda s: t.percent_cell(s.cached_prompt_share)),
    ]
    return Table(clean(summary.model), t("load.measure"), tuple(clean(s.name) for s in stages), tuple(rows))


def _jitter(stage: LoadStage) -> float | None:
    """How much longer the longest gaps between tokens are than the usual one; None where the usual one is 0."""
    usual, longest = stage.itl_s.get("p50"), stage.itl_s.get("p99")
    return longest / usual if usual and longest is not None else None


def _percentile_row(metric: str, percentile: str, stages: tuple[LoadStage, ...], t: LoadLanguage) -> Row:
    cells = []
    for stage in stages:
        value = getattr(stage, f"{metric}_s").get(percentile)
        cell = t.time_cell(value)
        n = stage.counts.get(metric, 0)
        if not cell and n:
            cells.append(Cell(t("load.too_few"), f"n = {t.integer(n)}", "muted"))
        else:
            cells.append(Cell(cell.value, f"n = {t.integer(n)}") if cell else cell)
    return Row(f"{metric.upper()} {percentile.upper()}", tuple(cells))


def _error_table(summary: LoadSummary, t: LoadLanguage) -> Table | None:
    rows = tuple(
        Row(
            clean(stage.name),
            (
                Cell(clean(kind)),
                Cell(t.integer(count)),
                Cell(clean(stage.error_examples.get(kind, "")) or "–"),
            ),
        )
        for stage in summary.stages
        for kind, count in stage.errors.items()
    )
    if not rows:
        return None
    return Table(
        t("load.errors"), t("load.stage"), (t("load.kind"), t("load.count"), t("load.example")), rows
    )


def _client_table(summary: LoadSummary, t: LoadLanguage) -> Table:
    """The proof that the server was measured, not the client."""

    def lag(lags: dict[str, float], missing: str) -> Cell:
        if not lags:
            return Cell(missing, tone="muted")
        tail = next(n for n in ("p99", "p95", "max") if n in lags)
        return Cell(t.seconds(lags[tail]), f"{tail} · max {t.seconds(lags['max'])}")

    rows = []
    for s in summary.stages:
        health = s.client
        rows.append(
            Row(
                clean(s.name),
                (
                    lag(health.send_lag_s, t("none_mark")),
                    lag(health.loop_lag_s, t("none_mark")),
                    t.percent_cell(health.cpu_share),
                    t.percent_cell(health.ceiling_share),
                    Cell("✓", tone="good")
                    if health.valid
                    else Cell("✗ " + clean("; ".join(health.reasons)), tone="bad"),
                ),
            )
        )
    columns = ("load.send_lag", "load.loop_lag", "load.cpu", "load.ceiling_share")
    return Table(t("load.client"), t("load.stage"), (*(t(c) for c in columns), "✓ / ✗"), tuple(rows))


def _self_test(summary: LoadSummary, t: LoadLanguage) -> str:
    test = summary.self_test
    if test is None:
        return t("load.not_tested")
    return t(
        "load.self_test_value",
        requests=t.integer(test.requests_per_s),
        tokens=t.integer(test.output_tokens_per_s),
        per=test.tokens_per_request,
        concurrency=test.concurrency,
    )


def _method(summary: LoadSummary, t: LoadLanguage) -> list[tuple[str, str]]:
    machine = summary.machine
    accepted = [str(k) for k, v in summary.features.items() if v is True]
    rows = [
        ("load.model", clean(summary.model)),
        (
            "load.server_version",
            clean(summary.server_version) if summary.server_version else t("not_recorded"),
        ),
        (
            "load.workload",
            ", ".join(f"{clean(k)} {clean(v)}" for k, v in summary.workload.items() if v != {}),
        ),
        ("load.objectives", _objectives(summary.objectives, t)),
        ("load.features", ", ".join([clean(summary.features.get("api", "")), *accepted])),
        ("load.self_test", _self_test(summary, t)),
        ("load.machine", ", ".join(f"{clean(k)} {clean(v)}" for k, v in machine.items())),
        ("load.started", clean(summary.started_at)),
        ("load.command", clean(summary.command)),
    ]
    return [(t(key), text) for key, text in rows]
