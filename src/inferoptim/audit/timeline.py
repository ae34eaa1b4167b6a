"""Quantities over time in equal steps, streamed: the step widens when the trace is long, so memory is bounded."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inferoptim.audit.rows import Floats
from inferoptim.records.audit_record import Series

STEPS_S = (1, 10, 60, 600, 3600, 86_400, 864_000)  # each divides the next
MAX_STEPS = 1 << 23  # 97 days at one second; 64 MiB a column
POINTS = 300  # of a series in the record


class Timeline:
    """Sums of some columns over equal steps.

    Attributes:
        step_s: width of a step; the smallest of `STEPS_S` that keeps the trace within `MAX_STEPS`.
        start: time of the first step's start, a multiple of the largest step; None before the first row.
    """

    def __init__(self, columns: int, max_steps: int = MAX_STEPS) -> None:
        self._columns, self._max = columns, max_steps
        self._index = 0
        self._base = 0  # first step, in steps since zero
        self._values = np.zeros((columns, 0))

    @property
    def step_s(self) -> int:
        return STEPS_S[self._index]

    @property
    def start_s(self) -> float:
        """When the first step begins."""
        return float(self._base * self.step_s)

    def add(self, column: int, times: Floats, weights: NDArray[np.float64] | None = None) -> None:
        """Add `weights` [n] (default: 1 each) at `times` [n]."""
        if not len(times):
            return
        low, high = float(times.min()), float(times.max())
        self._reach(low, high)
        steps = np.floor(times / self.step_s).astype(np.int64)
        first = int(steps.min())
        sums = np.bincount(steps - first, weights=weights)
        offset = first - self._base
        self._values[column, offset : offset + len(sums)] += sums

    def _reach(self, low: float, high: float) -> None:
        while True:
            step = self.step_s
            first, last = int(low // step), int(high // step)
            if self._values.shape[1]:
                first, last = min(first, self._base), max(last, self._base + self._values.shape[1] - 1)
            if last - first + 1 <= self._max or self._index == len(STEPS_S) - 1:
                break
            self._widen()
        if not self._values.shape[1]:
            self._base = first
        before, wanted = self._base - first, last - first + 1
        if before or wanted > self._values.shape[1]:
            # room for as much again, so that a growing trace is not copied at every batch
            room = wanted if before else min(max(wanted, 2 * self._values.shape[1]), max(self._max, wanted))
            grown = np.zeros((self._columns, room))
            grown[:, before : before + self._values.shape[1]] = self._values
            self._values, self._base = grown, first

    def _widen(self) -> None:
        factor = STEPS_S[self._index + 1] // self.step_s
        self._index += 1
        if not self._values.shape[1]:
            return
        before = self._base % factor
        after = -(before + self._values.shape[1]) % factor
        padded = np.pad(self._values, ((0, 0), (before, after)))
        self._base //= factor
        self._values = padded.reshape(self._columns, -1, factor).sum(axis=2)

    def column(self, column: int, first_s: float, last_s: float) -> NDArray[np.float64]:
        """The steps that hold `first_s` … `last_s`, both included; zero outside what was added."""
        low, high = int(first_s // self.step_s), int(last_s // self.step_s) + 1
        out = np.zeros(high - low)
        start, stop = max(low, self._base), min(high, self._base + self._values.shape[1])
        if stop > start:
            out[start - low : stop - low] = self._values[column, start - self._base : stop - self._base]
        return out

    def before(self, column: int, first_s: float) -> float:
        """Sum of all steps before the one that holds `first_s`."""
        cut = max(0, int(first_s // self.step_s) - self._base)
        return float(self._values[column, :cut].sum())


def regroup(values: NDArray[np.float64], factor: int) -> NDArray[np.float64]:
    """Sums of `factor` consecutive steps; an incomplete group at the end is left out."""
    whole = len(values) // factor
    return np.asarray(values[: whole * factor].reshape(whole, factor).sum(axis=1))


def series(values: NDArray[np.float64], start_s: float, step_s: float, scale: float = 1.0) -> Series:
    """Means of at most `POINTS` equal stretches of `values`, times `scale`."""
    factor = max(1, -(-len(values) // POINTS))
    edges = np.arange(0, len(values), factor)
    sums = np.add.reduceat(values, edges)
    sizes = np.diff(np.append(edges, len(values)))
    means = sums / sizes * scale
    return Series(start_s=start_s, step_s=step_s * factor, values=tuple(float(v) for v in means))
