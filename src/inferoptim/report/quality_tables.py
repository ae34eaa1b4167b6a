"""The report's tables about quality: what lossy levers cost, and that lossless ones change nothing."""

from __future__ import annotations

from collections.abc import Sequence

from inferoptim.records.schema import Interval, QualityRecord
from inferoptim.report.facts import Facts, rung_label
from inferoptim.report.language import Cell, Language, clean
from inferoptim.report.table import Row, Table, keyed_table


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
    return keyed_table(
        "identity", "configuration", ("check", "measured", "threshold", "quality", "detail"), rows, language
    )


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
