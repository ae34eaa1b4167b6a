"""Which run comes next: rounds over every configuration and case, shuffled anew each round, until each has had enough.

Interleaving spreads the machine's weather (heat, neighbours, frequency) over all configurations instead of charging it
to whichever ran then. Pure Python: no process, no clock.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

Cell = tuple[str, str]  # (config_id, case)


@dataclass(frozen=True, slots=True)
class StopRule:
    """When a cell has had enough runs."""

    runs: int
    min_runs: int
    seconds_per_case: float | None = None

    def done(self, walls_s: list[float], out_of_time: bool) -> bool:
        """`walls_s` of the runs so far; `out_of_time`: the plan's budget is spent."""
        if len(walls_s) < self.min_runs:
            return False
        if len(walls_s) >= self.runs or out_of_time:
            return True
        return self.seconds_per_case is not None and sum(walls_s) >= self.seconds_per_case

    def left_s(self, walls_s: list[float]) -> float | None:
        """Seconds that a cell will still take; None before its first run."""
        if not walls_s:
            return None
        mean = sum(walls_s) / len(walls_s)
        total = self.runs
        if self.seconds_per_case is not None:
            total = min(total, max(self.min_runs, int(-(-self.seconds_per_case // mean))))
        return mean * max(total - len(walls_s), 0)


@dataclass
class Schedule:
    """The runs still to do.

    Args:
        cells: what there is to measure.
        rule: when a cell is done.
        seed: of the order.
        walls_s: of runs that a resumed bench has already; filled by `record`.
    """

    cells: list[Cell]
    rule: StopRule
    seed: int
    walls_s: dict[Cell, list[float]] = field(default_factory=dict)
    _round: int = 0

    def rounds(self, out_of_time: Callable[[], bool]) -> Iterable[Cell]:
        """Cells in the order in which to run them; the caller records each before asking for the next."""
        while True:
            todo = [c for c in self.cells if not self._done(c, out_of_time())]
            if not todo:
                return
            random.Random(f"{self.seed}/{self._round}").shuffle(todo)
            self._round += 1
            for cell in todo:
                if cell in self.cells and not self._done(cell, out_of_time()):
                    yield cell

    def record(self, cell: Cell, wall_s: float) -> None:
        """One more run of a cell."""
        self.walls_s.setdefault(cell, []).append(wall_s)

    def drop(self, config_id: str) -> None:
        """A configuration failed: none of its cells is run again."""
        self.cells = [c for c in self.cells if c[0] != config_id]

    def left_s(self) -> float | None:
        """Seconds of measuring left; None until every cell has run once."""
        parts = [self.rule.left_s(self.walls_s.get(c, [])) for c in self.cells]
        return None if any(p is None for p in parts) else sum(p for p in parts if p is not None)

    def progress(self) -> tuple[int, int]:
        """(runs done, runs expected)."""
        done = sum(len(self.walls_s.get(c, [])) for c in self.cells)
        expected = 0
        for cell in self.cells:
            walls = self.walls_s.get(cell, [])
            left = self.rule.left_s(walls)
            mean = sum(walls) / len(walls) if walls else 0.0
            expected += len(walls) + (
                round(left / mean) if left and mean else 0 if walls else self.rule.min_runs
            )
        return done, expected

    def _done(self, cell: Cell, out_of_time: bool) -> bool:
        return self.rule.done(self.walls_s.get(cell, []), out_of_time)


def interleave_fits(needed_bytes: Mapping[str, int], free_bytes: int) -> bool:
    """Whether all configurations may be in memory at once, with a fifth of what is free left alone."""
    return sum(needed_bytes.values()) <= 0.8 * free_bytes
