"""A table of a report: rows of cells, printed by both templates and by the other pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inferoptim.report.facts import Rung, rung_label
from inferoptim.report.language import Cell, Language, clean


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


def keyed_table(
    caption: str, heading: str, columns: Sequence[str], rows: Sequence[Row], language: Language
) -> Table:
    """A table whose caption, heading and columns are looked up by key in the language's catalogue."""
    heads = tuple(language(f"column.{c}") for c in columns)
    return Table(language(f"caption.{caption}"), language(f"column.{heading}"), heads, tuple(rows))


def failed_row(rung: Rung, language: Language) -> Row:
    """A configuration without a speed, and why."""
    reason = clean(rung.reason)
    words = language(f"status.{rung.status}")
    return Row(
        rung_label(rung, language),
        number=rung.number,
        note=f"{words}: {reason}" if reason else words,
        tone="bad",
    )
