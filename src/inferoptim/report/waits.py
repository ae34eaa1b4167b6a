"""What each lever did to waiting: first token, gaps between tokens, sequences that fit at once. Rates alone hide it.

A wait is called shorter or longer only where its interval lies wholly on one side of the other's, and by a tenth at least:
percentiles of few runs have intervals that are too narrow on one side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from inferoptim.records.schema import Interval, MetricSummary
from inferoptim.report.facts import Case, Effect, Facts, Rung, bounded, measured_time, rung_label
from inferoptim.report.language import Cell, Language, clean
from inferoptim.report.table import Row, Table

MEASURES = (("ttft_s", "p50"), ("itl_s", "p99"))
LEAST_CHANGE = 0.10
_MARKS: dict[str, tuple[str, Any]] = {"gain": (" ↓", "good"), "loss": (" ↑", "bad")}


@dataclass(frozen=True)
class Wait:
    """One percentile of one rung on one workload, against the rung that it builds on."""

    rung: Rung
    case: Case
    measure: str  # 'ttft_s' or 'itl_s'
    before: Interval | None
    after: Interval | None

    @property
    def effect(self) -> Effect:
        if self.before is None or self.after is None:
            return "not_measured"
        if bounded(self.before) is None or bounded(self.after) is None:
            return "undecided"
        if abs(self.after.value - self.before.value) < LEAST_CHANGE * self.before.value:
            return "undecided"
        if self.after.high < self.before.low:
            return "gain"
        return "loss" if self.after.low > self.before.high else "undecided"


def waits(facts: Facts) -> Iterator[Wait]:
    """Every rung that builds on another, workload by workload."""
    for case in facts.cases:
        for rung in case.rungs:
            below = case.metrics.get(rung.config.previous or "")
            for measure, percentile in MEASURES:
                yield Wait(
                    rung,
                    case,
                    measure,
                    _percentile(below, measure, percentile),
                    _percentile(case.metrics[rung.id], measure, percentile),
                )


def waiting_table(facts: Facts, case: Case, language: Language) -> Table | None:
    """First token, longest gaps, most sequences at once, preemptions; None where requests come one at a time."""
    if case.concurrency == 1 or not case.rungs:
        return None
    found = {(w.rung.id, w.measure): w for w in waits(facts) if w.case is case}
    rows = []
    for rung in case.rungs:
        runs = facts.measured_runs.get((rung.id, case.name), ())
        preempted = [r.counters["preemptions"] for r in runs if "preemptions" in r.counters]
        at_once = _most_at_once(facts, case, rung)
        cells = [_cell(found[rung.id, measure], language) for measure, _ in MEASURES]
        cells.append(Cell(language.integer(at_once)) if at_once is not None else Cell())
        cells.append(language.unit_cell(sum(preempted) / len(preempted)) if preempted else Cell())
        rows.append(Row(rung_label(rung, language), tuple(cells), rung.number))
    columns = ("ttft_p50", "itl_p99", "at_once", "preempted")
    heads = tuple(language(f"column.{name}") for name in columns)
    caption = language("caption.waits", case=clean(case.name))
    return Table(caption, language("column.configuration"), heads, tuple(rows))


def wait_findings(facts: Facts, language: Language, name_of: dict[str, str]) -> list[str]:
    """One sentence for what became shorter, one for what became longer.

    Args:
        name_of: what to call each rung, by configuration.
    """
    said: dict[str, dict[str, list[str]]] = {"gain": {}, "loss": {}}
    for wait in waits(facts):
        if wait.case.concurrency == 1 or wait.effect not in said or wait.rung.config.previous is None:
            continue
        assert wait.before is not None, "an effect needs both sides"
        assert wait.after is not None, "an effect needs both sides"
        words = language(
            f"verdict.{wait.measure}",
            before=language.time_cell(wait.before.value).value,
            after=language.time_cell(wait.after.value).value,
            case=clean(wait.case.name),
        )
        said[wait.effect].setdefault(name_of[wait.rung.id], []).append(words)
    between = "\u202f; " if language.code == "fr" else "; "
    return [
        language(
            f"verdict.waits_{kind}", names=between.join(f"{n} ({', '.join(w)})" for n, w in found.items())
        )
        for kind, found in said.items()
        if found
    ]


def room_findings(facts: Facts, language: Language, name_of: dict[str, str]) -> list[str]:
    """One sentence for what let more sequences run at once; see `wait_findings`."""
    said: dict[str, list[str]] = {}
    for case in facts.cases:
        for rung in case.rungs:
            below = facts.rung(rung.config.previous)
            before = _most_at_once(facts, case, below) if below else None
            after = _most_at_once(facts, case, rung)
            if before and after and case.concurrency != 1 and after >= (1 + LEAST_CHANGE) * before:
                words = language("verdict.at_once_at", before=before, after=after, case=clean(case.name))
                said.setdefault(name_of[rung.id], []).append(words)
    names = language.join(f"{name} ({', '.join(words)})" for name, words in said.items())
    return [language("verdict.at_once", names=names)] if said else []


def kv_note(facts: Facts, language: Language) -> str:
    """How much KV memory the engine had, in bytes and in sequences of full length; '' where no record says."""
    for rung in facts.rungs:
        config, length = rung.config, rung.config.settings.get("max_model_len")
        if config.target == "engine" and config.kv_capacity_bytes and config.kv_capacity_tokens and length:
            block = int(config.settings.get("block_size", 1))
            slot = -(-int(length) // block) * block
            return language(
                "note.waits_kv",
                memory=language.bytes(config.kv_capacity_bytes),
                n=language.integer(config.kv_capacity_tokens // slot),
                tokens=language.integer(int(length)),
            )
    return ""


def _percentile(metric: MetricSummary | None, measure: str, percentile: str) -> Interval | None:
    return None if metric is None else measured_time(getattr(metric, measure).get(percentile))


def _cell(wait: Wait, language: Language) -> Cell:
    cell = language.time_cell(wait.after)
    mark, tone = _MARKS.get(wait.effect, ("", ""))
    return Cell(cell.value + mark, cell.interval, tone)


def _most_at_once(facts: Facts, case: Case, rung: Rung) -> int | None:
    """Most sequences that ran together at any sample of any run; None where there is no such meter."""
    seen = [
        s.running
        for key, samples in facts.telemetry.items()
        if key[:2] == (rung.id, case.name)
        for s in samples
        if s.running is not None
    ]
    return max(seen, default=None)
