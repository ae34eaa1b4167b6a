"""The verdict in plain words, and what to do next. Every sentence follows from `Facts`; none goes beyond them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inferoptim.records.schema import Interval, MetricSummary
from inferoptim.report.facts import Case, Effects, Facts, Rung, bounded, ratio_effect, rung_label, usable
from inferoptim.report.language import Cell, Language, clean, finite
from inferoptim.report.waits import room_findings, wait_findings

MOST_NAMES = 4
SHORT_REASON = 120  # characters of an error quoted in the verdict; the ladder has it whole


@dataclass(frozen=True)
class Verdict:
    """Sentences of one paragraph; what each lever did, a sentence a kind; and next steps, each a sentence."""

    sentences: tuple[str, ...]
    findings: tuple[str, ...]
    next_steps: tuple[str, ...]

    @property
    def paragraph(self) -> str:
        return " ".join(self.sentences)


def verdict(facts: Facts, language: Language) -> Verdict:
    """What the records allow one to say."""
    sentences = [_subject(facts, language)]
    sentences += [_of_case(facts, case, language) for case in facts.cases]
    if not any(case.fastest for case in facts.cases):
        sentences.append(language("verdict.nothing"))
    findings = _of_levers(facts, language)
    called = {r.id: lever_name(r, language) for r in facts.rungs}
    findings += [*wait_findings(facts, language, called), *room_findings(facts, language, called)]
    if facts.failed:
        names = language.join(_with_reason(r, language) for r in facts.failed)
        findings.append(language("verdict.failed", names=names))
    return Verdict(tuple(sentences), tuple(findings), tuple(_next_steps(facts, language)))


def _subject(facts: Facts, language: Language) -> str:
    environment = facts.run.folder.environment
    valid = sum(r.has_speed for r in facts.rungs)
    model = clean(environment.model) if environment else language("this_model")
    machine = clean(_machine(facts)) if environment else language("this_machine")
    return language("verdict.subject", model=model, machine=machine, total=len(facts.rungs), valid=valid)


def _machine(facts: Facts) -> str:
    environment = facts.run.folder.environment
    assert environment is not None
    names = [str(gpu.get("name", "GPU")) for gpu in environment.gpus]
    return ", ".join(names) if names else environment.cpu


def _of_case(facts: Facts, case: Case, language: Language) -> str:
    where = _where(case, language)
    best = case.fastest
    if best is None:
        return language("verdict.case_empty", where=where)
    metric = case.metrics[best.id]
    values = {
        "where": where,
        "name": rung_label(best, language),
        "rate": with_interval(language.unit_cell(metric.output_tokens_per_s)),
        "against": _against(facts, case, metric, language),
        "cost": _cost(facts, metric, language),
        "checked": language("verdict.checked" if best.quality_mark == "passed" else "verdict.unchecked"),
    }
    if len(case.rungs) == 1:
        return language("verdict.case_alone", **values)
    if best is facts.baseline and not case.tied:
        return language("verdict.case_baseline", **values)
    if bounded(metric.output_tokens_per_s) is None:
        return language("verdict.case_one_run", **values)
    if case.tied:
        others = _names(case.tied, language)
        return language("verdict.case_tied", others=others, **values)
    return language("verdict.case_fastest", **values)


def _names(rungs: Sequence[Rung], language: Language) -> str:
    """The names, or how many there are when a list would say nothing."""
    if len(rungs) > MOST_NAMES:
        return language("verdict.many", n=len(rungs))
    return language.join(rung_label(r, language) for r in rungs)


def _where(case: Case, language: Language) -> str:
    if case.concurrency is None:
        return language("verdict.where_plain", case=clean(case.name))
    key = "verdict.where_one" if case.concurrency == 1 else "verdict.where_many"
    return language(key, n=case.concurrency, case=clean(case.name))


def _against(facts: Facts, case: Case, metric: MetricSummary, language: Language) -> str:
    if facts.baseline is None or case.fastest is facts.baseline:
        return ""
    ratio = usable(metric.speedup_vs_baseline)
    effect = ratio_effect(ratio)
    if effect == "not_measured" or ratio is None:
        return ""
    key = "verdict.against" if effect != "undecided" else "verdict.against_undecided"
    name = rung_label(facts.baseline, language)
    return language(key, ratio=with_interval(language.times_cell(ratio)), baseline=name)


def _cost(facts: Facts, metric: MetricSummary, language: Language) -> str:
    index = usable(metric.cost_index)
    cost = usable(metric.cost_per_million_output_tokens)
    summary = facts.run.summary
    if cost is not None and summary.price_per_hour is not None:
        money = with_interval(language.money_cell(cost, summary.currency))
        if index is None:
            return language("verdict.cost", money=money)
        return language("verdict.cost_and_index", money=money, index=language.number(index.value))
    return language("verdict.index", index=language.number(index.value)) if index else ""


def with_interval(cell: Cell) -> str:
    """'203 (198–208)'."""
    return f"{cell.value} ({cell.interval})" if cell.interval else cell.value


def _of_levers(facts: Facts, language: Language) -> list[str]:
    """One sentence for the rungs that paid, one for those that cost, one for those that cannot be told."""
    said: dict[str, list[str]] = {key: [] for key in ("gains", "losses", "needed", "spared", "unclear")}
    for effects in facts.effects:
        up, down = _places(effects, "gain", facts, language), _places(effects, "loss", facts, language)
        name = lever_name(effects.rung, language)
        better, worse = ("spared", "needed") if effects.removed else ("gains", "losses")
        if effects.removed:
            name = language.join(known_lever(lever, language) for lever in sorted(effects.removed))
        if up:
            said[better].append(f"{name} ({up})")
        if down:
            said[worse].append(f"{name} ({down})")
        if not up and not down and any(kind == "undecided" for kind, _ in effects.by_case.values()):
            said["unclear"].append(name)
    return [language(f"verdict.{key}", names=language.join(names)) for key, names in said.items() if names]


def known_lever(lever: str, language: Language) -> str:
    key = f"lever.{lever}"
    return language(key) if language.has(key) else clean(lever)


def lever_name(rung: Rung, language: Language) -> str:
    """The lever that a rung adds, in the report's language; the rung's own label where it adds none."""
    return (
        known_lever(rung.config.added_lever, language)
        if rung.config.added_lever
        else rung_label(rung, language)
    )


def _places(effects: Effects, wanted: str, facts: Facts, language: Language) -> str:
    found = [(name, ratio) for name, (kind, ratio) in effects.by_case.items() if kind == wanted and ratio]
    if len(facts.cases) == 1:
        return ", ".join(language.times_cell(ratio).value for _, ratio in found)
    return ", ".join(
        language("verdict.ratio_at", ratio=language.times_cell(r).value, case=clean(name))
        for name, r in found
    )


def _with_reason(rung: Rung, language: Language) -> str:
    reason = clean(rung.reason) or language(f"status.{rung.status}")
    if len(reason) > SHORT_REASON:
        reason = reason[: SHORT_REASON - 1].rstrip() + "…"
    return f"{rung_label(rung, language)} ({reason})"


def _next_steps(facts: Facts, language: Language) -> list[str]:
    steps = []
    for rung, cases in _winners(facts):
        where = language.join(clean(c.name) for c in cases)
        key = "next.use" if len(cases) < len(facts.cases) else "next.use_everywhere"
        steps.append(language(key, name=rung_label(rung, language), where=where))
    for case in facts.cases:
        if case.tied and case.fastest:
            names = _names((case.fastest, *case.tied), language)
            steps.append(language("next.tied", where=clean(case.name), names=names))
    if any(kind == "undecided" for e in facts.effects for kind, _ in e.by_case.values()) or any(
        c.tied for c in facts.cases
    ):
        steps.append(language("next.measure_longer"))
    broke = [r for r in facts.rungs if r.status == "failed_quality"]
    if broke:
        steps.append(language("next.quality", names=language.join(rung_label(r, language) for r in broke)))
    if any(r.status in ("failed", "not_run") for r in facts.rungs):
        steps.append(language("next.resume"))
    steps += _room(facts, language)
    if facts.run.summary.price_per_hour is None:
        steps.append(language("next.price"))
    return steps


def _winners(facts: Facts) -> list[tuple[Rung, list[Case]]]:
    """Rungs shown to be fastest and faster than the baseline, with the workloads where that holds."""
    found: dict[str, tuple[Rung, list[Case]]] = {}
    for case in facts.cases:
        if case.fastest is None or case.tied or len(case.rungs) < 2 or case.fastest.quality_mark != "passed":
            continue
        metric = case.metrics[case.fastest.id]
        if bounded(metric.output_tokens_per_s) is None or ratio_effect(metric.speedup_vs_baseline) != "gain":
            continue
        found.setdefault(case.fastest.id, (case.fastest, []))[1].append(case)
    return list(found.values())


def _room(facts: Facts, language: Language) -> list[str]:
    shares: list[tuple[float, Case]] = []
    for case in facts.cases:
        share = finite(case.metrics[case.fastest.id].share_of_possible) if case.fastest else None
        if share is not None and 0 < share <= 1:
            shares.append((share, case))
    if not shares:
        return []
    share, case = min(shares, key=lambda pair: pair[0])
    return [
        language(
            "next.room",
            where=clean(case.name),
            share=language.percent(share),
            factor=language.times(1 / share),
        )
    ]


def computed_warnings(facts: Facts, language: Language) -> list[str]:
    """What the report itself finds doubtful in the records."""
    found = []
    if facts.run.summary.protocol.get("interrupted"):
        found.append(language("warning.interrupted"))
    for case in facts.cases:
        wide = [r for r in case.rungs if _half_width(case.metrics[r.id].output_tokens_per_s) > 0.10]
        if wide:
            names = language.join(
                f"{rung_label(r, language)} (± {language.percent(_half_width(case.metrics[r.id].output_tokens_per_s), 0)})"
                for r in wide
            )
            found.append(language("warning.wide", where=clean(case.name), names=names))
        single = [
            rung_label(r, language)
            for r in case.rungs
            if bounded(case.metrics[r.id].output_tokens_per_s) is None
        ]
        if single:
            found.append(language("warning.no_interval", where=clean(case.name), names=language.join(single)))
        beyond = [
            rung_label(r, language)
            for r in case.rungs
            if (finite(case.metrics[r.id].share_of_possible) or 0) > 1
        ]
        if beyond:
            found.append(language("warning.beyond", where=clean(case.name), names=language.join(beyond)))
    found += [
        language(
            "warning.failed",
            name=rung_label(r, language),
            status=language(f"status.{r.status}"),
            reason=clean(r.reason) or "–",
        )
        for r in facts.failed
    ]
    return found


def _half_width(interval: Interval | None) -> float:
    ranked = bounded(interval)
    return (ranked.high - ranked.low) / 2 / ranked.value if ranked else 0.0
