"""What the records say, arranged for reading. Every claim that the report makes is decided here, once.

Rules: a configuration that failed, or failed its quality gate, has no speed, no index and no price. Two
configurations are ranked only where their intervals allow it. One run gives no interval, hence no ranking.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from inferoptim.records.schema import (
    ConfigurationRecord,
    Interval,
    MetricSummary,
    QualityRecord,
    RequestRecord,
    RunRecord,
    TelemetrySample,
)
from inferoptim.report.language import Language, clean, finite
from inferoptim.report.load import Records

Effect = Literal["gain", "loss", "undecided", "failed", "not_measured"]
QualityMark = Literal["passed", "failed", "reference", "none"]
WIDE_HALF_WIDTH = 0.10  # an interval wider than ± 10 % of its estimate is pointed out


@dataclass(frozen=True)
class Rung:
    """One configuration and its place in the report."""

    number: int  # from 1, in the order of the summary; the same in every table and figure
    config: ConfigurationRecord
    quality: tuple[QualityRecord, ...]

    @property
    def id(self) -> str:
        return self.config.config_id

    @property
    def has_speed(self) -> bool:
        """Only a configuration that ran and broke no quality gate may show a speed."""
        return self.config.status == "ok" and not any(not q.passed for q in self.quality)

    @property
    def status(self) -> str:
        if self.config.status == "ok" and not self.has_speed:
            return "failed_quality"
        return self.config.status

    @property
    def quality_mark(self) -> QualityMark:
        if any(not q.passed for q in self.quality) or self.config.status == "failed_quality":
            return "failed"
        if self.quality:
            return "passed"
        return "reference" if self.config.is_baseline else "none"

    @property
    def reason(self) -> str:
        """Why there is no speed: the error, or what the gate said."""
        if self.config.error:
            return self.config.error
        return "; ".join(q.detail for q in self.quality if not q.passed and q.detail)


@dataclass(frozen=True)
class Effects:
    """What one rung's added lever did to the output rate, workload by workload."""

    rung: Rung
    previous: Rung | None
    by_case: Mapping[str, tuple[Effect, Interval | None]]

    @property
    def removed(self) -> frozenset[str]:
        """Levers that this rung takes away from the one it is compared with (a leave-one-out design)."""
        if self.previous is None or self.previous.config.target != self.rung.config.target:
            return frozenset()
        return frozenset(self.previous.config.levers) - frozenset(self.rung.config.levers)


@dataclass(frozen=True)
class Case:
    """One workload at one concurrency, with every rung that has a speed there."""

    name: str
    family: str
    concurrency: int | None
    metrics: Mapping[str, MetricSummary]  # by config_id; only rungs with a speed
    rungs: tuple[Rung, ...]  # those of `metrics`, in report order
    fastest: Rung | None = None
    tied: tuple[Rung, ...] = ()  # rungs whose interval does not exclude that they are as fast


@dataclass(frozen=True)
class Facts:
    """The report's whole content, before words."""

    run: Records
    rungs: tuple[Rung, ...]
    baseline: Rung | None
    cases: tuple[Case, ...]
    effects: tuple[Effects, ...]
    requests: Mapping[tuple[str, str], Sequence[RequestRecord]] = field(repr=False)
    telemetry: Mapping[tuple[str, str, int], Sequence[TelemetrySample]] = field(repr=False)
    measured_runs: Mapping[tuple[str, str], Sequence[RunRecord]] = field(repr=False)

    @property
    def failed(self) -> tuple[Rung, ...]:
        return tuple(r for r in self.rungs if not r.has_speed)

    def rung(self, config_id: str | None) -> Rung | None:
        return next((r for r in self.rungs if r.id == config_id), None)

    @property
    def families(self) -> dict[str, tuple[Case, ...]]:
        """Cases of the same work at several concurrencies."""
        grouped: dict[str, list[Case]] = defaultdict(list)
        for case in self.cases:
            grouped[case.family].append(case)
        return {name: tuple(cases) for name, cases in grouped.items()}


def rung_label(rung: Rung, language: Language) -> str:
    """A configuration's name in the report's language; the recorded one where the catalogue has none."""
    config = rung.config
    if language.has(f"config.{config.config_id}"):
        return language(f"config.{config.config_id}")
    if config.config_id == f"+{config.added_lever}" and language.has(f"lever.{config.added_lever}"):
        return f"+ {language(f'lever.{config.added_lever}')}"
    return clean(config.label)


def read_facts(run: Records) -> Facts:
    """Arrange the records of one run."""
    summary = run.summary
    quality: dict[str, list[QualityRecord]] = defaultdict(list)
    for record in summary.quality:
        quality[record.config_id].append(record)
    rungs = tuple(
        Rung(number, config, tuple(quality[config.config_id]))
        for number, config in enumerate(summary.configurations, start=1)
    )
    by_id = {rung.id: rung for rung in rungs}
    baseline = by_id.get(summary.baseline) or next((r for r in rungs if r.config.is_baseline), None)
    cases = _cases(summary.metrics, rungs)
    requests: dict[tuple[str, str], list[RequestRecord]] = defaultdict(list)
    for request in run.folder.requests:
        requests[request.config_id, request.workload].append(request)
    telemetry: dict[tuple[str, str, int], list[TelemetrySample]] = defaultdict(list)
    for sample in run.folder.telemetry:
        telemetry[sample.config_id, sample.workload, sample.run_index].append(sample)
    return Facts(
        run=run,
        rungs=rungs,
        baseline=baseline,
        cases=cases,
        effects=_effects(rungs, by_id, cases),
        requests=requests,
        telemetry=telemetry,
        measured_runs=run.folder.measured_runs(),
    )


def usable(interval: Interval | None) -> Interval | None:
    """`interval`, or None where it holds no finite, positive estimate."""
    if interval is None or finite(interval.value) is None or interval.value <= 0:
        return None
    return interval


def measured_time(interval: Interval | None) -> Interval | None:
    """`interval`, or None where nothing was measured; a time of 0 (two tokens that came together) is a measurement."""
    if interval is None or finite(interval.value) is None or interval.value < 0:
        return None
    return interval


def bounded(interval: Interval | None) -> Interval | None:
    """`interval` where it may rank: at least two runs, and finite bounds in order."""
    if usable(interval) is None or interval is None or interval.n == 1:
        return None
    if finite(interval.low) is None or finite(interval.high) is None or interval.low > interval.high:
        return None
    return interval


def is_wide(interval: Interval | None) -> bool:
    """Whether the interval is too wide to be relied on for small differences."""
    ranked = bounded(interval)
    return ranked is not None and (ranked.high - ranked.low) / 2 > WIDE_HALF_WIDTH * ranked.value


def ratio_effect(ratio: Interval | None, separated: bool | None = None) -> Effect:
    """What a speed-up interval allows one to say."""
    if usable(ratio) is None:
        return "not_measured"
    ranked = bounded(ratio)
    if ranked is None or separated is False or ranked.low <= 1 <= ranked.high:
        return "undecided"
    return "gain" if ranked.low > 1 else "loss"


def _cases(metrics: Sequence[MetricSummary], rungs: tuple[Rung, ...]) -> tuple[Case, ...]:
    with_speed = {rung.id: rung for rung in rungs if rung.has_speed}
    names = list(dict.fromkeys(m.workload for m in metrics))
    cases = []
    for name in names:
        of_case = {
            m.config_id: m
            for m in metrics
            if m.workload == name and m.config_id in with_speed and usable(m.output_tokens_per_s)
        }
        present = tuple(r for r in rungs if r.id in of_case)
        concurrency = next((m.concurrency for m in metrics if m.workload == name and m.concurrency), None)
        fastest = max(present, key=lambda r: _rate(of_case[r.id]), default=None)
        tied = tuple(r for r in present if fastest and r is not fastest and not _slower(r, fastest, of_case))
        cases.append(
            Case(name, name.rpartition("@")[0] or name, concurrency, of_case, present, fastest, tied)
        )
    return tuple(cases)


def _rate(metric: MetricSummary) -> float:
    assert metric.output_tokens_per_s is not None
    return metric.output_tokens_per_s.value


def _slower(rung: Rung, fastest: Rung, metrics: Mapping[str, MetricSummary]) -> bool:
    """Whether the records show that `rung` is slower than `fastest`."""
    if fastest.config.previous == rung.id:
        effect = _effect(metrics[fastest.id])
        if effect != "not_measured":
            return effect == "gain"
    if rung.config.previous == fastest.id:
        effect = _effect(metrics[rung.id])
        if effect != "not_measured":
            return effect == "loss"
    ours = bounded(metrics[rung.id].output_tokens_per_s)
    best = bounded(metrics[fastest.id].output_tokens_per_s)
    return ours is not None and best is not None and ours.high < best.low


def _effect(metric: MetricSummary) -> Effect:
    return ratio_effect(metric.speedup_vs_previous, metric.separated_from_previous)


def _effects(
    rungs: tuple[Rung, ...], by_id: Mapping[str, Rung], cases: tuple[Case, ...]
) -> tuple[Effects, ...]:
    found = []
    for rung in rungs:
        if rung.config.previous is None:
            continue
        by_case: dict[str, tuple[Effect, Interval | None]] = {}
        for case in cases:
            metric = case.metrics.get(rung.id)
            if not rung.has_speed:
                by_case[case.name] = ("failed", None)
            elif metric is None:
                by_case[case.name] = ("not_measured", None)
            else:
                by_case[case.name] = (_effect(metric), usable(metric.speedup_vs_previous))
        found.append(Effects(rung, by_id.get(rung.config.previous), by_case))
    return tuple(found)
