"""Sums over blocks of consecutive rows: what a streaming pass keeps so that its estimates have intervals.

Neighbouring requests resemble each other, so an interval that treats rows as independent is too narrow. Resampling
blocks of consecutive rows keeps what is alike inside a block together.
Source: block bootstrap, Künsch 1989; Kreiss and Lahiri 2012.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from inferoptim.records.schema import Interval
from inferoptim.records.statistics import paired_interval

MAX_BLOCKS = 512  # kept; merged in pairs above this
FIRST_ROWS = 4  # rows of a block to begin with
MIN_BLOCKS = 8  # below this a bootstrap says nothing
RESAMPLES = 2000

Sums = Mapping[str, NDArray[np.float64]]


class BlockSums:
    """Streaming sums of named per-row values; memory does not grow with the rows."""

    def __init__(self, *names: str) -> None:
        self._names = (*names, "n")
        self._size = FIRST_ROWS
        self._blocks = np.zeros((0, len(self._names)))
        self._carry = np.zeros((0, len(self._names)))

    def add(self, **values: NDArray[np.float64]) -> None:
        """Append rows, in order; each argument [n]."""
        columns = [np.asarray(values[name], dtype=np.float64) for name in self._names[:-1]]
        rows = np.column_stack([*columns, np.ones(len(columns[0]))])
        rows = np.concatenate([self._carry, rows]) if len(self._carry) else rows
        whole = len(rows) // self._size
        # many rows at once: larger blocks straight away, rather than thousands that would be merged again
        while (whole + len(self._blocks)) > 2 * MAX_BLOCKS:
            self._merge()
            whole = len(rows) // self._size
        cut = whole * self._size
        sums = rows[:cut].reshape(whole, self._size, len(self._names)).sum(axis=1)
        self._blocks = np.concatenate([self._blocks, sums])
        self._carry = rows[cut:]
        while len(self._blocks) > MAX_BLOCKS:
            self._merge()

    def _merge(self) -> None:
        self._size *= 2
        if not len(self._blocks):
            return
        even = len(self._blocks) // 2 * 2
        merged = self._blocks[:even].reshape(even // 2, 2, len(self._names)).sum(axis=1)
        self._blocks = np.concatenate([merged, self._blocks[even:]])

    @property
    def _all(self) -> NDArray[np.float64]:
        rest = self._carry.sum(axis=0, keepdims=True) if len(self._carry) else self._carry
        return np.concatenate([self._blocks, rest])

    def total(self, name: str) -> float:
        """Sum over all rows ('n': their count)."""
        return float(self._all[:, self._names.index(name)].sum())

    def interval(self, statistic: Callable[[Sums], NDArray[np.float64]], key: str) -> Interval | None:
        """A function of the sums, with a 95 % block-bootstrap interval.

        Args:
            statistic: maps {name: [U]} to [U]; must give nan, not raise, where it is undefined.
            key: names the resampling stream.

        Returns:
            None where the statistic is undefined on all rows; low = high = value and n = 1 with too few blocks.
        """
        blocks = self._all
        if not len(blocks):
            return None

        def on_weights(weights: NDArray[np.float64]) -> NDArray[np.float64]:
            sums = np.asarray(weights, float) @ blocks
            with np.errstate(all="ignore"):
                return np.asarray(statistic(dict(zip(self._names, sums.T, strict=True))), float)

        value = float(on_weights(np.ones((1, len(blocks))))[0])
        if not np.isfinite(value):
            return None
        if len(blocks) < MIN_BLOCKS:
            return Interval(value=value, low=value, high=value, n=1)
        found = paired_interval(on_weights, len(blocks), key, resamples=RESAMPLES)
        if not (np.isfinite(found.low) and np.isfinite(found.high)):
            return Interval(value=value, low=value, high=value, n=1)
        return found


def ratio(over: str, under: str) -> Callable[[Sums], NDArray[np.float64]]:
    """The statistic Σ over / Σ under."""
    return lambda sums: sums[over] / sums[under]


def proportion(hits: int, total: int) -> Interval:
    """A share of independent rows, with its 95 % Wilson interval.

    Source: Wilson 1927.
    """
    if total < 1:
        raise ValueError("a share needs at least one row")
    z2 = 1.959964**2
    share = hits / total
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = (z2 * (share * (1 - share) / total + z2 / (4 * total * total))) ** 0.5 / (1 + z2 / total)
    return Interval(value=share, low=max(0.0, centre - half), high=min(1.0, centre + half), n=total)


def coefficient_of_variation(first: str, second: str) -> Callable[[Sums], NDArray[np.float64]]:
    """√(Σx²·n / (Σx)² − 1) from sums of x and x²."""

    def statistic(sums: Sums) -> NDArray[np.float64]:
        return np.asarray(np.sqrt(np.maximum(sums[second] * sums["n"] / sums[first] ** 2 - 1, 0)))

    return statistic


def correlation(x: str, y: str, xx: str, yy: str, xy: str) -> Callable[[Sums], NDArray[np.float64]]:
    """Pearson's correlation from sums."""

    def statistic(sums: Sums) -> NDArray[np.float64]:
        n = sums["n"]
        covariance = sums[xy] * n - sums[x] * sums[y]
        spread = (sums[xx] * n - sums[x] ** 2) * (sums[yy] * n - sums[y] ** 2)
        return np.asarray(covariance / np.sqrt(np.where(spread > 0, spread, np.nan)))

    return statistic


__all__: Sequence[str] = ("BlockSums", "coefficient_of_variation", "correlation", "proportion", "ratio")
