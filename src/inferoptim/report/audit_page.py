"""The audit's HTML page: self-contained, in English or French, a pure function of the record."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from inferoptim.records.audit_record import AuditRecord
from inferoptim.report import audit_figures as figures
from inferoptim.report import audit_sentences as sentences
from inferoptim.report import audit_tables as tables
from inferoptim.report.language import Cell, Language, clean
from inferoptim.report.table import Row, Table

DIET_FLOOR = 0.005  # share of prompt tokens below which a finding is not reported


def render_audit(record: AuditRecord, language: Language) -> str:
    """The page's text."""
    environment = Environment(
        loader=PackageLoader("inferoptim.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css = (files("inferoptim.report") / "templates" / "report.css").read_text(encoding="utf-8")
    return environment.get_template("audit.html.j2").render(
        t=language,
        record=record,
        css=Markup(css),
        title=language("audit.title", name=clean(", ".join(record.trace.files))),
        lead=sentences.lead(record, language),
        partial=sentences.partial_sentence(record, language) if record.trace.partial else "",
        sections=_sections(record, language),
    )


def _sections(record: AuditRecord, language: Language) -> list[dict[str, object]]:
    """Each section: name, notes before, tables (with the columns that hold words), figures."""

    def section(
        name: str,
        notes: list[str],
        found: list[Table | None],
        words: tuple[int, ...] = (),
        drawn: tuple[Callable[[AuditRecord, Language], Markup | None], ...] = (),
    ) -> dict[str, object]:
        drawings = [draw(record, language) for draw in drawn]
        return {
            "name": name,
            "title": language(f"audit.section.{name}"),
            "notes": [n for n in notes if n],
            "tables": [t for t in found if t is not None],
            "words": words,
            "figures": [d for d in drawings if d is not None],
        }

    return [
        section("levers", [language("audit.note.levers")], [tables.levers_table(record, language)], (0, 1)),
        section(
            "lengths",
            [language("audit.note.intervals")],
            [tables.lengths_table(record, language), tables.shape_table(record, language)],
            drawn=(figures.lengths_figure,),
        ),
        section(
            "arrivals",
            [] if record.arrivals else [language("audit.note.no_arrivals")],
            [tables.arrivals_table(record, language)],
            drawn=(figures.rate_figure, figures.diurnal_figure),
        ),
        section(
            "concurrency",
            _concurrency_notes(record, language),
            [tables.concurrency_table(record, language)],
            drawn=(figures.concurrency_figure, figures.kv_figure),
        ),
        section(
            "prefix",
            _prefix_notes(record, language),
            [tables.prefix_table(record, language), tables.curve_table(record, language)],
            drawn=(figures.prefix_figure,),
        ),
        section("roofline", _roofline_notes(record, language), [tables.roofline_table(record, language)]),
        section(
            "conversations",
            [],
            [tables.conversations_table(record, language), tables.languages_table(record, language)],
        ),
        section(
            "text",
            _text_notes(record, language),
            [tables.density_table(record, language), tables.latency_table(record, language)],
        ),
        section("diet", _diet_notes(record, language), [tables.diet_table(record, language)]),
        section("rows", _row_notes(record, language), [tables.bad_rows_table(record, language)], (0,)),
        section("notes", [sentences.note_sentence(n, language) for n in record.notes], []),
        section("source", [_redaction(record, language)], [_source_table(record, language)], (0,)),
    ]


def audit_notes(record: AuditRecord, language: Language) -> list[str]:
    """What the console says below its tables."""
    notes = [] if record.arrivals else [language("audit.note.no_arrivals")]
    notes += _concurrency_notes(record, language) if record.arrivals else []
    notes += _prefix_notes(record, language) + _roofline_notes(record, language)
    if record.text is not None:
        notes += _text_notes(record, language) + _diet_notes(record, language)
    notes += _row_notes(record, language) if record.trace.unreadable else []
    notes += [sentences.note_sentence(n, language) for n in record.notes]
    notes.append(language("audit.note.levers"))
    return [note for note in notes if note]


def _concurrency_notes(record: AuditRecord, language: Language) -> list[str]:
    found = record.concurrency
    if found is None:
        return [language("audit.note.no_durations" if record.arrivals else "audit.note.no_arrivals")]
    notes = [language("audit.note.concurrency", step=language.seconds(found.step_s))]
    if found.basis == "stated":
        notes.append(
            language(
                "audit.note.stated_durations",
                ttft=language.seconds(found.stated["ttft_s"]),
                tpot=language.seconds(found.stated["tpot_s"]),
            )
        )
    return notes


def _prefix_notes(record: AuditRecord, language: Language) -> list[str]:
    found = record.prefix
    if found is None:
        return [language("audit.note.no_prefix")]
    unit = "characters" if found.basis == "characters" else "tokens"
    block = language(f"audit.note.prefix_{unit}", n=language.integer(found.block_tokens))
    notes = [language("audit.note.prefix", block=block)]
    if found.sampled_share < 1:
        notes.append(language("audit.note.prefix_sampled", share=language.percent(found.sampled_share)))
    return notes


def _roofline_notes(record: AuditRecord, language: Language) -> list[str]:
    found = record.roofline
    if found is None:
        return [language("audit.note.no_roofline")]
    return [
        language(
            "audit.note.roofline", model=clean(found.model), gpu=clean(found.gpu), source=clean(found.source)
        ),
        language(f"audit.note.batch_{found.chosen_basis}"),
    ]


def _text_notes(record: AuditRecord, language: Language) -> list[str]:
    text = record.text
    if text is None or not text.tokenizers:
        return [language("audit.note.no_text")]
    notes = [language("audit.note.parallel", source=clean(text.parallel_source))]
    if text.ttft_basis is not None:
        notes.append(language(f"audit.note.ttft_{text.ttft_basis}", ttft=language.seconds(text.ttft_s)))
    return notes


def _diet_notes(record: AuditRecord, language: Language) -> list[str]:
    text = record.text
    if text is None or not text.diet_sampled:
        return [language("audit.note.no_text")] if text is None else []
    if not text.diet:
        return [language("audit.note.no_diet", share=language.percent(DIET_FLOOR))]
    notes = [language("audit.note.diet", n=language.integer(text.diet_sampled))]
    if text.price_per_million is None:
        notes.append(language("audit.note.no_price"))
    else:
        notes.append(
            language("audit.note.price", price=language.money(text.price_per_million, text.currency))
        )
    return notes


def _row_notes(record: AuditRecord, language: Language) -> list[str]:
    trace = record.trace
    if not trace.unreadable:
        return [language("audit.note.all_read")]
    return [
        language(
            "audit.note.rows",
            n=language.integer(trace.unreadable),
            shown=language.integer(len(trace.unreadable_examples)),
        )
    ]


def _redaction(record: AuditRecord, language: Language) -> str:
    return language("audit.note.redacted" if record.trace.redacted else "audit.note.not_redacted")


def _source_table(record: AuditRecord, language: Language) -> Table:
    trace = record.trace
    columns = ", ".join(f"{clean(field)} = {clean(column)}" for field, column in trace.columns.items())
    rows = (
        ("files", clean(", ".join(trace.files))),
        ("format", clean(trace.format)),
        ("columns", columns or language("none_mark")),
        ("size", language.bytes(trace.size_bytes)),
        ("sha256", clean(trace.sha256)),
        ("elapsed", language.seconds(record.elapsed_s)),
    )
    return Table(
        "",
        language("audit.column.quantity"),
        (language("audit.column.value"),),
        tuple(Row(language(f"audit.source.{name}"), (Cell(text),)) for name, text in rows),
    )
