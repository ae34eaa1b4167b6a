"""The report's tables about speed, built once and printed by both templates, so that HTML and Markdown cannot disagree."""

from __future__ import annotations

from typing import Any

from inferoptim.records.schema import MetricSummary
from inferoptim.report.facts import (
    Case,
    Facts,
    Rung,
    is_wide,
    measured_time,
    ratio_effect,
    rung_label,
    usable,
)
from inferoptim.report.language import Cell, Language, clean, finite
from inferoptim.report.table import Row, Table, failed_row, keyed_table
from inferoptim.report.use_tables import money_cell

_TONES: dict[str, Any] = {
    "gain": "good",
    "loss": "bad",
    "passed": "good",
    "failed": "bad",
    "undecided": "muted",
}


def case_title(case: Case, language: Language) -> str:
    """'guide@32 · 32 requests at once'."""
    if case.concurrency is None:
        return clean(case.name)
    key = "one_request" if case.concurrency == 1 else "requests_at_once"
    return f"{clean(case.name)} · {language(key, n=case.concurrency)}"


def headline(facts: Facts, language: Language) -> Table:
    """One row a workload: where the baseline stands, and the fastest configuration beside it."""
    rows = []
    for case in facts.cases:
        best = case.metrics.get(case.fastest.id) if case.fastest else None
        if best is None or case.fastest is None:
            rows.append(Row(case_title(case, language), note=language("no_valid_measurement")))
            continue
        base = case.metrics.get(facts.baseline.id) if facts.baseline else None
        name = rung_label(case.fastest, language) + (f" {language('tied_mark')}" if case.tied else "")
        rows.append(
            Row(
                case_title(case, language),
                (
                    language.unit_cell(usable(base.output_tokens_per_s) if base else None),
                    Cell(name),
                    language.unit_cell(usable(best.output_tokens_per_s)),
                    language.times_cell(usable(best.speedup_vs_baseline)),
                    language.unit_cell(usable(best.cost_index)),
                    money_cell(best, facts, language),
                ),
            )
        )
    columns = ("baseline_rate", "fastest", "rate", "vs_baseline", "cost_index", "cost")
    return keyed_table("headline", "workload", columns, rows, language)


def effects(facts: Facts, language: Language) -> Table | None:
    """Lever by workload: what each rung changed against the rung below it."""
    if not facts.effects or not facts.cases:
        return None
    rows = []
    for effect in facts.effects:
        name = rung_label(effect.rung, language)
        if not effect.rung.has_speed:
            rows.append(failed_row(effect.rung, language))
            continue
        cells = []
        for case in facts.cases:
            kind, ratio = effect.by_case[case.name]
            cell = language.times_cell(ratio)
            word = language(f"effect.{kind}")
            cells.append(Cell(f"{cell.value} {word}" if cell else "", cell.interval, _TONES.get(kind, "")))
        below = (
            rung_label(effect.previous, language)
            if effect.previous
            else clean(effect.rung.config.previous or "")
        )
        rows.append(Row(name, (Cell(below), *cells), effect.rung.number))
    heads = (language("column.against"), *(clean(c.name) for c in facts.cases))
    return Table(language("caption.effects"), language("column.configuration"), heads, tuple(rows))


def ladder(facts: Facts, case: Case, language: Language) -> Table:
    """The whole ladder on one workload."""
    rows = []
    for rung in facts.rungs:
        metric = case.metrics.get(rung.id)
        if not rung.has_speed:
            rows.append(failed_row(rung, language))
            continue
        mark = Cell(language(f"quality.{rung.quality_mark}"), "", _TONES.get(rung.quality_mark, ""))
        if metric is None:
            cells = (*(Cell() for _ in range(7)), mark)
        else:
            rate = language.unit_cell(usable(metric.output_tokens_per_s))
            wide = language("wide_mark") if is_wide(metric.output_tokens_per_s) else ""
            cells = (
                Cell(rate.value, f"{rate.interval}{wide}"),
                language.time_cell(usable(metric.ttft_s.get("p50"))),
                language.time_cell(usable(metric.tpot_s.get("p50"))),
                _versus(metric, "previous", rung, language),
                _versus(metric, "baseline", rung, language),
                language.unit_cell(usable(metric.cost_index)),
                language.percent_cell(metric.share_of_possible),
                mark,
            )
        rows.append(Row(rung_label(rung, language), cells, rung.number))
    columns = ("rate", "ttft_p50", "tpot_p50", "vs_previous", "vs_baseline", "cost_index", "share", "quality")
    table = keyed_table("ladder", "configuration", columns, rows, language)
    return Table(case_title(case, language), table.heading, table.columns, table.rows)


def unmeasured(facts: Facts, language: Language) -> Table:
    """The configurations of a run in which no workload was measured, each with its reason."""
    rows = [
        Row(rung_label(r, language), number=r.number, note=language("not_measured"))
        if r.has_speed
        else failed_row(r, language)
        for r in facts.rungs
    ]
    return keyed_table("unmeasured", "configuration", ("reason",), rows, language)


def tails(facts: Facts, case: Case, language: Language) -> Table | None:
    """End-to-end, first-token and inter-token percentiles, where the number of runs allows them."""
    wanted: list[tuple[str, str]] = []
    for group in ("e2e_s", "ttft_s", "tpot_s", "itl_s"):
        present = {p for m in case.metrics.values() for p, i in getattr(m, group).items() if measured_time(i)}
        wanted += [
            (group, p)
            for p in ("p50", "p95", "p99")
            if p in present and (group, p) not in (("ttft_s", "p50"), ("tpot_s", "p50"))
        ]
    if not wanted:
        return None
    rows = [
        Row(
            rung_label(rung, language),
            tuple(
                language.time_cell(measured_time(getattr(case.metrics[rung.id], g).get(p))) for g, p in wanted
            ),
            rung.number,
        )
        for rung in case.rungs
    ]
    heads = tuple(f"{g[:-2].upper()} {p}" for g, p in wanted)
    return Table(case_title(case, language), language("column.configuration"), heads, tuple(rows))


def ceiling(facts: Facts, case: Case, language: Language) -> Table | None:
    """Floor, share of possible, bandwidth and arithmetic utilisation."""
    rows = []
    for rung in case.rungs:
        m = case.metrics[rung.id]
        if any(finite(v) is not None for v in (m.floor_s, m.share_of_possible, m.mbu, m.mfu)):
            cells = (
                language.time_cell(m.floor_s),
                *(language.percent_cell(v) for v in (m.share_of_possible, m.mbu, m.mfu)),
            )
            rows.append(Row(rung_label(rung, language), cells, rung.number))
    if not rows:
        return None
    table = keyed_table("ceiling", "configuration", ("floor", "share", "mbu", "mfu"), rows, language)
    return Table(case_title(case, language), table.heading, table.columns, table.rows)


def _versus(metric: MetricSummary, other: str, rung: Rung, language: Language) -> Cell:
    if other == "baseline" and rung.config.is_baseline:
        return Cell("1", "", "muted")
    if other == "previous" and rung.config.previous is None:
        return Cell("–", "", "muted")
    ratio = usable(metric.speedup_vs_previous if other == "previous" else metric.speedup_vs_baseline)
    cell = language.times_cell(ratio)
    if not cell:
        return cell
    separated = metric.separated_from_previous if other == "previous" else None
    kind = ratio_effect(ratio, separated)
    return Cell(
        cell.value + (f" {language('undecided_mark')}" if kind == "undecided" else ""),
        cell.interval,
        _TONES.get(kind, ""),
    )
