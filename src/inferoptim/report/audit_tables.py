"""An audit record as tables of one language; the console and the HTML page both print these."""

from __future__ import annotations

from collections.abc import Sequence

from inferoptim.records.audit_record import AuditRecord, ConcurrencyRecord, Distribution
from inferoptim.report.audit_sentences import diet_sentence, lever_reason, mean_count
from inferoptim.report.language import Cell, Language, clean
from inferoptim.report.table import Row, Table


def levers_table(record: AuditRecord, language: Language) -> Table:
    """Every lever with its verdict and rule."""
    order = {"can_pay": 0, "unknown": 1, "unlikely": 2}
    rows = []
    for lever in sorted(record.levers, key=lambda x: order[x.verdict]):
        name = language(f"lever.{lever.lever}") if language.has(f"lever.{lever.lever}") else lever.lever
        tone = {"can_pay": "good", "unknown": "muted", "unlikely": ""}[lever.verdict]
        verdict = Cell(language(f"audit.verdict.{lever.verdict}"), tone=tone)  # type: ignore[arg-type]
        rows.append(Row(name, (verdict, Cell(lever_reason(lever, language)))))
    heads = (language("audit.column.verdict"), language("audit.column.why"))
    return Table("", language("audit.column.lever"), heads, tuple(rows))


def lengths_table(record: AuditRecord, language: Language) -> Table:
    """Distribution of prompt, output and total lengths."""
    rows = []
    for name in ("prompt", "output", "total"):
        found: Distribution | None = getattr(record.lengths, name)
        heading = language(f"audit.row.{name}")
        if found is None:
            rows.append(Row(heading, note=language("not_measured")))
            continue
        rows.append(
            Row(
                heading,
                (
                    language.unit_cell(found.mean),
                    *(language.fixed_cell(getattr(found, p), 0) for p in ("p50", "p90", "p99")),
                    Cell(language.integer(found.maximum)),
                ),
            )
        )
    heads = tuple(language(f"audit.column.{name}") for name in ("mean", "p50", "p90", "p99", "max"))
    return Table("", language("audit.column.quantity"), heads, tuple(rows))


def _pairs(language: Language, rows: Sequence[tuple[str, Cell]]) -> Table:
    return Table(
        "",
        language("audit.column.quantity"),
        (language("audit.column.value"),),
        tuple(Row(language(f"audit.row.{name}"), (cell,)) for name, cell in rows),
    )


def shape_table(record: AuditRecord, language: Language) -> Table:
    """Ratio, correlation, and what a static batch would wait for."""
    lengths = record.lengths
    return _pairs(
        language,
        (
            ("ratio", language.unit_cell(lengths.prompt_per_output)),
            ("correlation", language.fixed_cell(lengths.correlation, 2)),
            ("longest8", language.fixed_cell(lengths.longest_of_8, 0)),
        ),
    )


def arrivals_table(record: AuditRecord, language: Language) -> Table | None:
    """Rate and burstiness."""
    found = record.arrivals
    if found is None:
        return None
    return _pairs(
        language,
        (
            ("span", language.time_cell(found.span_s)),
            ("rate", language.unit_cell(found.rate_per_s)),
            ("cv", language.unit_cell(found.gap_cv)),
            ("dispersion1", language.unit_cell(found.dispersion_1s)),
            ("dispersion60", language.unit_cell(found.dispersion_60s)),
            ("peak", language.times_cell(found.peak_minute_per_mean)),
        ),
    )


def concurrency_table(record: AuditRecord, language: Language) -> Table | None:
    """Requests in flight and KV-cache in demand."""
    found = record.concurrency
    if found is None:
        return None
    return _pairs(
        language,
        (
            ("duration", language.time_cell(found.mean_duration_s)),
            ("little", language.unit_cell(found.little)),
            ("observed", language.unit_cell(found.observed_mean)),
            ("observed50", Cell(mean_count(found.observed_p50, language))),
            ("observed99", Cell(mean_count(found.observed_p99, language))),
            ("observed_peak", Cell(mean_count(found.observed_peak, language))),
            *((f"kv_{part}", _kv(record, found, part, language)) for part in ("mean", "p99", "peak")),
        ),
    )


def _kv(record: AuditRecord, found: ConcurrencyRecord, part: str, language: Language) -> Cell:
    tokens: float | None = getattr(found, f"kv_tokens_{part}")
    if tokens is None:
        return Cell()
    n = language.integer(round(tokens))
    if record.roofline is None:
        return Cell(language("audit.unit.tokens", n=n))
    size = language.bytes(tokens * record.roofline.kv_bytes_per_token)
    return Cell(language("audit.unit.tokens_bytes", n=n, bytes=size))


def prefix_table(record: AuditRecord, language: Language) -> Table | None:
    """How much was seen before."""
    found = record.prefix
    if found is None:
        return None
    return _pairs(
        language,
        (
            ("reusable", language.percent_cell(found.reusable)),
            ("with_hit", language.percent_cell(found.requests_with_hit)),
            ("distinct", Cell(language.integer(found.distinct_blocks))),
        ),
    )


def curve_table(record: AuditRecord, language: Language, points: int = 8) -> Table | None:
    """Some points of the hit-rate curve."""
    if record.prefix is None or not record.prefix.curve:
        return None
    curve = record.prefix.curve
    last = len(curve) - 1
    picked = sorted({round(i * last / (points - 1)) for i in range(points)})
    rows = []
    for index in picked:
        point = curve[index]
        if record.prefix.basis == "characters":
            size = language("audit.note.prefix_characters", n=language.integer(point.tokens))
        else:
            size = language("audit.unit.tokens", n=language.integer(point.tokens))
            if record.roofline is not None:
                n_bytes = language.bytes(point.tokens * record.roofline.kv_bytes_per_token)
                size = language("audit.unit.tokens_bytes", n=language.integer(point.tokens), bytes=n_bytes)
        rows.append(Row(size, (language.percent_cell(point.hit_rate),)))
    return Table("", language("audit.column.cache"), (language("audit.column.hit"),), tuple(rows))


def roofline_table(record: AuditRecord, language: Language) -> Table | None:
    """Floors by batch size."""
    found = record.roofline
    if found is None:
        return None
    rows = []
    for point in found.points:
        mark = "► " if point.batch == found.chosen_batch else ""
        rows.append(
            Row(
                mark + mean_count(point.batch, language),
                (
                    language.time_cell(point.prefill_s),
                    language.time_cell(point.decode_s),
                    language.percent_cell(point.decode_share),
                    language.time_cell(point.step_s),
                    language.percent_cell(point.weights_share),
                ),
            )
        )
    heads = tuple(
        language(f"audit.column.{n}") for n in ("prefill", "decode", "decode_share", "step", "weights_share")
    )
    return Table("", language("audit.column.batch"), heads, tuple(rows))


def conversations_table(record: AuditRecord, language: Language) -> Table | None:
    """Turns and how requests ended; None where the trace tells neither."""
    rows: list[tuple[str, Cell]] = []
    turns = record.turns
    if turns is not None:
        if turns.sessions is not None:
            rows.append(("sessions", Cell(language.integer(turns.sessions))))
        rows.append(
            ("turns" if turns.basis == "sessions" else "turns_message", language.unit_cell(turns.mean))
        )
        rows.append(("turns90", Cell(mean_count(turns.p90, language))))
    if record.outcomes.failed is not None:
        rows.append(("failed", language.percent_cell(record.outcomes.failed)))
    if record.outcomes.truncated is not None:
        rows.append(("truncated", language.percent_cell(record.outcomes.truncated)))
    if record.lengths.output is not None:
        rows.append(("zero_output", Cell(language.integer(record.outcomes.zero_output))))
    return _pairs(language, rows) if rows else None


def languages_table(record: AuditRecord, language: Language) -> Table | None:
    """Languages of the prompts."""
    if not record.languages:
        return None
    rows = tuple(
        Row(_language(s.code, language), (language.percent_cell(s.share), Cell(language.integer(s.requests))))
        for s in record.languages
    )
    heads = (language("audit.column.share"), language("audit.column.requests"))
    return Table("", language("audit.column.language"), heads, rows)


def _language(code: str, language: Language) -> str:
    return language(f"audit.language.{code}") if language.has(f"audit.language.{code}") else code


def density_table(record: AuditRecord, language: Language) -> Table | None:
    """Tokens per character, by tokenizer and text."""
    if record.text is None or not record.text.tokenizers:
        return None
    rows = []
    for tokenizer in record.text.tokenizers:
        for kind, costs in (("parallel", tokenizer.parallel), ("own", tokenizer.own)):
            for cost in costs:
                density = cost.tokens_per_character
                name = language(f"audit.language.{kind}", code=_language(cost.code, language))
                extra = tokenizer.extra_over_english.get(cost.code) if kind == "parallel" else None
                rows.append(
                    Row(
                        f"{clean(tokenizer.name)} · {name}",
                        (
                            language.fixed_cell(density, 3),
                            language.fixed_cell(1 / density.value if density.value else None, 2),
                            language.percent_cell(extra) if extra else Cell(language("none_mark")),
                        ),
                    )
                )
    heads = tuple(language(f"audit.column.{n}") for n in ("density", "chars", "extra"))
    return Table("", language("audit.column.tokenizer"), heads, tuple(rows))


def latency_table(record: AuditRecord, language: Language) -> Table | None:
    """Encode and decode times by length."""
    if record.text is None or not record.text.tokenizers:
        return None
    rows = [
        Row(
            f"{clean(tokenizer.name)} · {language('audit.unit.tokens', n=language.integer(point.tokens))}",
            (
                language.time_cell(point.encode_p50_s),
                language.time_cell(point.encode_p95_s),
                language.time_cell(point.decode_p50_s),
                language.time_cell(point.decode_p95_s),
                language.percent_cell(point.ttft_share, 2),
            ),
        )
        for tokenizer in record.text.tokenizers
        for point in tokenizer.latency
    ]
    heads = tuple(
        language(f"audit.column.{n}") for n in ("encode50", "encode95", "decode50", "decode95", "ttft_share")
    )
    return Table("", language("audit.column.tokenizer"), heads, tuple(rows))


def diet_table(record: AuditRecord, language: Language) -> Table | None:
    """Tokens that the prompts could do without."""
    if record.text is None or not record.text.diet:
        return None
    rows = tuple(
        Row(
            diet_sentence(finding, language),
            (
                Cell(language.integer(finding.requests)),
                Cell(language.number(finding.tokens)),
                language.percent_cell(finding.share),
                language.money_cell(finding.saved, record.text.currency),
            ),
        )
        for finding in record.text.diet
    )
    heads = tuple(
        language(f"audit.column.{n}") for n in ("requests", "saved_tokens", "saved_share", "saved_money")
    )
    return Table("", language("audit.column.finding"), heads, rows)


def bad_rows_table(record: AuditRecord, language: Language) -> Table | None:
    """The first rows that could not be read."""
    if not record.trace.unreadable_examples:
        return None
    rows = tuple(
        Row(f"{clean(bad.file)} : {language.integer(bad.line)}", (Cell(clean(bad.reason)),))
        for bad in record.trace.unreadable_examples
    )
    head = f"{language('audit.column.file')} : {language('audit.column.line')}"
    return Table("", head, (language("audit.column.reason"),), rows)
