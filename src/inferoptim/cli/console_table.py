"""Tables on a terminal of any width: a figure is never cut in two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

LONGEST_WORD = 24  # what is longer (an address) may be cut


def print_table(
    console: Console,
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Sequence[bool],
) -> None:
    """Print as a grid; without its frame where that does not fit, and row by row where no grid does.

    Args:
        columns: headings.
        rows: cells, as text without markup; a row may end early.
        right: by column, whether it holds figures: aligned to the right, never wrapped.
    """
    cells = [[row[i] for row in rows if i < len(row)] for i in range(len(columns))]
    for framed in (True, False):
        between = 3 * len(columns) + (1 if framed else -3)
        widths = _widths(columns, cells, right, console.width - between)
        if widths is not None:
            console.print(_grid(title, columns, rows, right, widths, framed))
            return
    _row_by_row(console, title, columns, rows)


def _widths(
    columns: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[bool], room: int
) -> list[int] | None:
    """What each column gets: its longest line where there is room, never less than its longest word; None: no room."""
    widths, least = [], []
    for column, found, figures in zip(columns, cells, right, strict=True):
        widths.append(max(map(_width, (column, *found))))
        word = max((_width(word) for text in (column, *found) for word in text.split()), default=0)
        least.append(max(max(map(_width, found), default=0) if figures else 0, min(word, LONGEST_WORD)))
    if sum(least) > room:
        return None
    while sum(widths) > room:
        widest = max(
            range(len(widths)), key=lambda i: (widths[i] > least[i], widths[i] - least[i], widths[i])
        )
        widths[widest] -= 1
    return widths


def _width(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def _grid(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Sequence[bool],
    widths: Sequence[int],
    framed: bool,
) -> Table:
    from rich.table import Table
    from rich.text import Text

    grid = Table(
        title=Text(title), title_justify="left", header_style="bold", show_edge=framed, pad_edge=framed
    )
    for column, figures, width in zip(columns, right, widths, strict=True):
        grid.add_column(Text(column), justify="right" if figures else "left", overflow="fold", width=width)
    for row in rows:
        grid.add_row(*map(Text, row))
    return grid


def _row_by_row(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.text import Text

    console.print(Text(title, "italic"))
    widest = max(map(len, columns[1:]), default=0)
    for row in rows:
        console.print(Text(row[0], "bold"))
        for column, cell in zip(columns[1:], row[1:], strict=False):
            console.print(Text(f"  {column:<{widest}}  {cell}"))
