"""Progress of long commands on the terminal: stderr only, so that stdout stays a result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from inferoptim.units import format_seconds

PHASES = {
    "probe": "machine",
    "quality": "quality gate",
    "load": "loading",
    "measure": "measuring",
    "report": "report",
}


@contextmanager
def download_progress() -> Iterator[Callable[[str, int, int | None], None]]:
    """A bar for `resolve_model`; nothing is shown when the model is cached."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, int] = {}

        def show(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)  # type: ignore[arg-type]

        yield show


@contextmanager
def counted_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each named piece of work, told (what, index of the part begun, parts in all)."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done + 1)

        yield show


class BenchProgress:
    """What a bench does right now, how far it is, and how long it will still take. An `Observer` of `bench.protocol`."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[phase]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[counts]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.description}", style="dim"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,  # else it leaves an empty line
        )
        self._task = self._bars.add_task("", phase="", counts="", left="", total=None)
        self._phase = ""

    def __enter__(self) -> BenchProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away; twice does no harm."""
        self._bars.stop()

    def phase(self, name: str, total: int) -> None:
        self._phase = name
        self._bars.update(
            self._task,
            phase=PHASES[name],
            counts="",
            left="",
            total=total or None,
            completed=0,
            description="",
        )
        if not self._console.is_terminal:
            self._console.print(PHASES[name])

    def step(self, what: str, done: int, total: int, left_s: float | None = None) -> None:
        self._bars.update(
            self._task,
            description=what,
            completed=done,
            total=total or None,
            counts=f"{done}/{total}" if total > 1 else "",
            left=f"{format_seconds(left_s)} left" if left_s else "",
        )
        # without a terminal, one line a step of the short phases: measuring has hundreds
        if not self._console.is_terminal and self._phase in ("quality", "load"):
            self._console.print(f"  {what}")

    def note(self, text: str) -> None:
        self._console.print(text, highlight=False)
