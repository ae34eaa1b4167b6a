"""The report's tables about what a configuration took: money, memory, processor, energy."""

from __future__ import annotations

from collections.abc import Sequence

from inferoptim.records.schema import MetricSummary
from inferoptim.report.facts import Case, Facts, rung_label, usable
from inferoptim.report.kv import KvSeries
from inferoptim.report.language import Cell, Language, clean
from inferoptim.report.table import Row, Table, failed_row, keyed_table


def costs(facts: Facts, language: Language) -> Table | None:
    """Cost of a million output tokens at the stated price, by workload."""
    if facts.run.summary.price_per_hour is None:
        return None
    rows = []
    for rung in facts.rungs:
        if not rung.has_speed:
            rows.append(failed_row(rung, language))
            continue
        metrics = [case.metrics.get(rung.id) for case in facts.cases]
        rows.append(
            Row(
                rung_label(rung, language),
                tuple(money_cell(m, facts, language) for m in metrics),
                rung.number,
            )
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
    return keyed_table("telemetry", "configuration", columns, rows, language)


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
        keyed_table("kv", "configuration", ("kv_live", "kv_held", "kv_used", "kv_capacity"), rows, language)
        if rows
        else None
    )


def money_cell(metric: MetricSummary | None, facts: Facts, language: Language) -> Cell:
    """Cost of a million output tokens, where a price was stated."""
    if metric is None or facts.run.summary.price_per_hour is None:
        return Cell()
    return language.money_cell(usable(metric.cost_per_million_output_tokens), facts.run.summary.currency)


def _most(values: Sequence[int | None]) -> int | None:
    return max((v for v in values if v is not None), default=None)


def _mean(values: Sequence[float | None], scale: float = 1.0) -> float | None:
    known = [v for v in values if v is not None]
    return scale * sum(known) / len(known) if known else None
