"""An audit record in sentences of one language; the console and the HTML page both print these."""

from __future__ import annotations

from inferoptim.records.audit_record import AuditRecord, DietFinding, LeverRecord, Note
from inferoptim.report.language import Language, clean

_PERCENT = frozenset(
    (
        "decode_share",
        "weights_share",
        "cache_share",
        "filled",
        "waste",
        "reuse",
        "prefill_share",
        "time_share",
        "share",
        "reusable_share",
    )
)


_SECONDS = frozenset({"step_s", "prefill_s"})


_WHOLE = frozenset(("longest", "half_tokens", "wanted_tokens", "room_tokens", "rows", "mean_tokens"))


SHAPE_INPUT, SHAPE_OUTPUT = 10.0, 1.0  # prompt tokens for one output token


def lead(record: AuditRecord, language: Language) -> str:
    """The audit in a few sentences."""
    arrivals, ratio = record.arrivals, record.lengths.prompt_per_output
    span = rate = ""
    if arrivals is not None and arrivals.span_s > 0:
        span = language("audit.lead.span", span=language.seconds(arrivals.span_s))
        if arrivals.rate_per_s is not None:
            values = {"rate": language.number(arrivals.rate_per_s.value)}
            key = "audit.lead.rate_only"
            if arrivals.peak_minute_per_mean is not None and arrivals.gap_cv is not None:
                values |= {
                    "peak": language.times(arrivals.peak_minute_per_mean),
                    "cv": language.number(arrivals.gap_cv.value),
                }
                key = "audit.lead.rate"
            rate = language(key, **values)
    shape = ""
    if ratio is not None:
        kind = (
            "input" if ratio.value >= SHAPE_INPUT else "output" if ratio.value <= SHAPE_OUTPUT else "balanced"
        )
        shape = language(
            "audit.lead.ratio", ratio=language.number(ratio.value), shape=language(f"audit.shape.{kind}")
        )
    reuse = ""
    if record.prefix is not None:
        reuse = language("audit.lead.reuse", reuse=language.percent(record.prefix.reusable.value))
    return language(
        "audit.lead",
        requests=language.integer(record.trace.requests),
        span=span,
        ratio=shape,
        rate=rate,
        reuse=reuse,
    ).strip()


def value_of(name: str, value: float, language: Language) -> str:
    """A rule's figure as printed."""
    if name in _PERCENT:
        return language.percent(value)
    if name in _SECONDS:
        return language.seconds(value)
    return language.integer(round(value)) if name in _WHOLE else mean_count(value, language)


def mean_count(value: float, language: Language) -> str:
    """A mean number of requests: whole where it is whole."""
    return language.integer(value) if value == round(value) else language.number(value)


def lever_reason(lever: LeverRecord, language: Language) -> str:
    """The rule with its numbers, and what it lacks."""
    key = f"audit.rule.{lever.lever}"
    values = {name: value_of(name, value, language) for name, value in lever.figures.items()}
    missing = language("not_measured")
    parts = {"filled": "filled", "prefill": "prefill_share", "half": "half_tokens", "lookup": "lookup"}
    for part, figure in parts.items():
        if language.has(f"{key}.{part}"):
            values[part] = language(f"{key}.{part}", **values) if figure in lever.figures else ""
    names = [
        "decode_share",
        "weights_share",
        "batch",
        "cache_share",
        "step_s",
        "waste",
        "at_once",
        "longest",
        "reuse",
        "prefill_s",
        "wanted_tokens",
        "room_tokens",
    ]
    sentence = language(key, **{**dict.fromkeys(names, missing), **values})
    if lever.missing:
        what = language.join(language(f"audit.missing.{m}") for m in lever.missing)
        sentence += " " + language("audit.missing", what=what)
    return sentence


def diet_sentence(finding: DietFinding, language: Language) -> str:
    """What was found."""
    values = {
        name: clean(value) if isinstance(value, str) else language.integer(round(value))
        for name, value in finding.detail.items()
    }
    sentence = language(f"audit.diet.{finding.kind}", **values)
    return sentence + (f" («{values['excerpt']}»)" if "excerpt" in values else "")


def note_sentence(note: Note, language: Language) -> str:
    """A note of the trace as a sentence."""
    values = {
        name: clean(value) if isinstance(value, str) else value_of(name, value, language)
        for name, value in note.values.items()
    }
    return language(f"audit.trace.{note.key}", **values)


def partial_sentence(record: AuditRecord, language: Language) -> str:
    """Why the figures describe only a part of the trace."""
    why = record.trace.partial or ""
    if why == "interrupted":
        why = language("audit.interrupted")
    return language("audit.partial", why=clean(why))
