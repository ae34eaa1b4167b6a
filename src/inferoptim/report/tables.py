"""The report's tables, built once and printed by both templates, so that HTML and Markdown cannot disagree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inferoptim.records.schema import Interval, MetricSummary, QualityRecord
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
from inferoptim.report.kv import KvSeries
from inferoptim.report.language import Cell, Language, clean, finite

_TONES: dict[str, Any] = {
    "gain": "good",
    "loss": "bad",
    "passed": "good",
    "failed": "bad",
    "undecided": "muted",
}


@dataclass(frozen=True)
class Row:
    """A row heading, then cells; or, in place of the cells, the reason why there are none."""

    heading: str
    cells: tuple[Cell, ...] = ()
    number: int | None = None
    note: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """Columns: an optional number, the row heading, then `columns`."""

    caption: str
    heading: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def numbered(self) -> bool:
        return any(row.number is not None for row in self.rows)


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
                    _money(best, facts, language),
                ),
            )
        )
    columns = ("baseline_rate", "fastest", "rate", "vs_baseline", "cost_index", "cost")
    return _table("headline", "workload", columns, rows, language)


def effects(facts: Facts, language: Language) -> Table | None:
    """Lever by workload: what each rung changed against the rung below it."""
    if not facts.effects or not facts.cases:
        return None
    rows = []
    for effect in facts.effects:
        name = rung_label(effect.rung, language)
        if not effect.rung.has_speed:
            rows.append(_failed_row(effect.rung, language))
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
            rows.append(_failed_row(rung, language))
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
    table = _table("ladder", "configuration", columns, rows, language)
    return Table(case_title(case, language), table.heading, table.columns, table.rows)


def unmeasured(facts: Facts, language: Language) -> Table:
    """The configurations of a run in which no workload was measured, each with its reason."""
    rows = [
        Row(rung_label(r, language), number=r.number, note=language("not_measured"))
        if r.has_speed
        else _failed_row(r, language)
        for r in facts.rungs
    ]
    return _table("unmeasured", "configuration", ("reason",), rows, language)


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
    table = _table("ceiling", "configuration", ("floor", "share", "mbu", "mfu"), rows, language)
    return Table(case_title(case, language), table.heading, table.columns, table.rows)


def distribution(facts: Facts, language: Language) -> Table | None:
    """Lossy levers: perplexity, KL and top-1 agreement against the unquantised engine, by language of the text."""
    names = _value_names(facts, "distribution", ("perplexity_ratio", "kl_nats", "top1_agreement"))
    rows = []
    for rung in facts.rungs:
        for record in rung.quality:
            if record.kind != "distribution":
                continue
            groups = ([("all", record.values)] if record.values else []) + sorted(record.by_language.items())
            for position, (code, values) in enumerate(groups):
                spoken = language(f"text.{code}") if language.has(f"text.{code}") else clean(code)
                verdict = (
                    Cell(_verdict(record, language), "", "good" if record.passed else "bad")
                    if position == 0
                    else Cell(" ")
                )
                threshold = Cell(_threshold(record, language)) if position == 0 else Cell(" ")
                cells = (
                    Cell(spoken),
                    *(_quality_cell(n, values.get(n), language) for n in names),
                    threshold,
                    verdict,
                )
                rows.append(Row(rung_label(rung, language), cells, rung.number))
    if not rows:
        return None
    heads = (
        language("column.text"),
        *(_value_name(n, language) for n in names),
        language("column.threshold"),
        language("column.quality"),
    )
    return Table(language("caption.distribution"), language("column.configuration"), heads, tuple(rows))


def identity(facts: Facts, language: Language) -> Table | None:
    """Lossless levers and the engine itself: identical tokens, logits against transformers."""
    rows = []
    for rung in facts.rungs:
        for record in rung.quality:
            if record.kind == "distribution":
                continue
            measured = ", ".join(
                f"{_value_name(n, language)} {c.value}" + (f" ({c.interval})" if c.interval else "")
                for n, i in sorted(record.values.items())
                if (c := _quality_cell(n, i, language))
            )
            cells = (
                Cell(language(f"check.{record.kind}")),
                Cell(measured),
                Cell(_threshold(record, language)),
                Cell(_verdict(record, language), "", "good" if record.passed else "bad"),
                Cell(clean(record.detail) or " "),
            )
            rows.append(Row(rung_label(rung, language), cells, rung.number))
    if not rows:
        return None
    return _table(
        "identity", "configuration", ("check", "measured", "threshold", "quality", "detail"), rows, language
    )


def costs(facts: Facts, language: Language) -> Table | None:
    """Cost of a million output tokens at the stated price, by workload."""
    if facts.run.summary.price_per_hour is None:
        return None
    rows = []
    for rung in facts.rungs:
        if not rung.has_speed:
            rows.append(_failed_row(rung, language))
            continue
        metrics = [case.metrics.get(rung.id) for case in facts.cases]
        rows.append(
            Row(rung_label(rung, language), tuple(_money(m, facts, language) for m in metrics), rung.number)
        )
    heads = tuple(clean(c.name) for c in facts.cases)
    return Table(language("caption.costs"), language("column.configuration"), heads, tuple(rows))


def telemetry(facts: Facts, language: Language) -> Table | None:
    """What each configuration took from the machine, over all its measured runs. Not measured where no meter is."""
    rows = []
    for rung in facts.rungs:
        runs = [r for key, found in facts.measured_runs.items() if key[0] == rung.id for r in found]
        samples = [s for key, found in facts.telemetry.items() if key[0] == rung.id for s in found]
        metrics = [m for m in facts.run.summary.metrics if m.config_id == rung.id]
        rss = _most(
            [m.peak_rss_bytes for m in metrics]
            + [r.peak_rss_bytes for r in runs]
            + [s.rss_bytes for s in samples]
        )
        cpu = [(r.cpu_s, r.wall_s) for r in runs if r.cpu_s is not None and r.wall_s > 0]
        cores = (
            sum(c for c, _ in cpu) / sum(w for _, w in cpu)
            if cpu
            else _mean([s.cpu_percent for s in samples], 0.01)
        )
        energy = [(r.energy_j, r.output_tokens) for r in runs if r.energy_j is not None and r.output_tokens]
        joules = sum(e for e, _ in energy) / sum(t for _, t in energy) if energy else None
        c = rung.config
        cells = (
            language.time_cell(c.load_s),
            language.bytes_cell(c.weight_bytes),
            language.bytes_cell(c.kv_capacity_bytes),
            language.bytes_cell(rss),
            language.unit_cell(cores),
            language.unit_cell(joules if rung.has_speed else None),
            language.bytes_cell(_most([s.gpu_memory_bytes for s in samples])),
            language.unit_cell(_mean([s.gpu_power_w for s in samples]), (1.0, "W")),
        )
        rows.append(Row(clean(c.label), cells, rung.number))
    if not rows:
        return None
    columns = ("load", "weights", "kv_budget", "peak_rss", "cpu_cores", "energy", "gpu_memory", "gpu_power")
    return _table("telemetry", "configuration", columns, rows, language)


def kv_sharing(pairs: Sequence[tuple[Case, Sequence[KvSeries]]], language: Language) -> Table | None:
    """Of the KV memory held, the share that was live, and the most held at once."""
    rows = [
        Row(
            f"{clean(case.name)} · {rung_label(s.rung, language)}",
            (
                language.percent_cell(s.live_share),
                Cell(language.integer(max(s.reserved))),
                Cell(language.integer(max(s.used))),
                Cell(language.integer(s.capacity)) if s.capacity is not None else Cell(),
            ),
            s.rung.number,
        )
        for case, pair in pairs
        for s in pair
    ]
    return (
        _table("kv", "configuration", ("kv_live", "kv_held", "kv_used", "kv_capacity"), rows, language)
        if rows
        else None
    )


def _table(
    caption: str, heading: str, columns: Sequence[str], rows: Sequence[Row], language: Language
) -> Table:
    heads = tuple(language(f"column.{c}") for c in columns)
    return Table(language(f"caption.{caption}"), language(f"column.{heading}"), heads, tuple(rows))


def _failed_row(rung: Rung, language: Language) -> Row:
    reason = clean(rung.reason)
    words = language(f"status.{rung.status}")
    return Row(
        rung_label(rung, language),
        number=rung.number,
        note=f"{words}: {reason}" if reason else words,
        tone="bad",
    )


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


def _money(metric: MetricSummary | None, facts: Facts, language: Language) -> Cell:
    if metric is None or facts.run.summary.price_per_hour is None:
        return Cell()
    return language.money_cell(usable(metric.cost_per_million_output_tokens), facts.run.summary.currency)


def _most(values: Sequence[int | None]) -> int | None:
    return max((v for v in values if v is not None), default=None)


def _mean(values: Sequence[float | None], scale: float = 1.0) -> float | None:
    known = [v for v in values if v is not None]
    return scale * sum(known) / len(known) if known else None


def _value_names(facts: Facts, kind: str, first: Sequence[str]) -> list[str]:
    """Measures of this kind of check, the usual ones first, then any other by name."""
    found: set[str] = set()
    for rung in facts.rungs:
        for record in rung.quality:
            if record.kind == kind:
                found.update(record.values, *record.by_language.values())
    return [n for n in first if n in found] + sorted(found - set(first))


def _value_name(name: str, language: Language) -> str:
    return language(f"measure.{name}") if language.has(f"measure.{name}") else clean(name)


def _quality_cell(name: str, value: Interval | float | None, language: Language) -> Cell:
    """Ratios to four decimals (their distance from 1 is what matters), shares in percent, the rest in three digits."""
    if name.startswith("perplexity_ratio"):
        return language.fixed_cell(value, 4)
    if name.startswith("top1_agreement"):
        return language.percent_cell(value, 2)
    return language.unit_cell(value)


def _threshold(record: QualityRecord, language: Language) -> str:
    parts = (
        f"{_value_name(n, language)} {_quality_cell(n, v, language).value}"
        for n, v in sorted(record.threshold.items())
    )
    return ", ".join(parts) or language("none_stated")


def _verdict(record: QualityRecord, language: Language) -> str:
    return language("quality.passed" if record.passed else "quality.failed")
