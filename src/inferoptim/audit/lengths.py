"""Length distributions: exact counts of every length, so that any quantile is exact and memory is bounded."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from inferoptim.audit.rows import Ints
from inferoptim.records.audit_record import Bin, Distribution
from inferoptim.records.schema import Interval
from inferoptim.records.workload_file import REFERENCE_POINTS

PERCENTILES = {"p50": 0.50, "p90": 0.90, "p99": 0.99}
_Z = 1.959964


class LengthCounts:
    """How often each length was seen. Lengths are whole, 0 ≤ length ≤ rows.MAX_LENGTH."""

    def __init__(self) -> None:
        self._counts: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def add(self, lengths: Ints) -> None:
        """Count some lengths; negative ones (unknown) are left out."""
        known = lengths if not len(lengths) or lengths.min() >= 0 else lengths[lengths >= 0]
        if not len(known):
            return
        new = np.bincount(known)
        if len(new) > len(self._counts):
            grown = np.zeros(len(new), dtype=np.int64)
            grown[: len(self._counts)] = self._counts
            self._counts = grown
        self._counts[: len(new)] += new

    @property
    def total(self) -> int:
        """Rows counted."""
        return int(self._counts.sum())

    @property
    def zeros(self) -> int:
        """Rows of length 0."""
        return int(self._counts[0]) if len(self._counts) else 0

    @property
    def maximum(self) -> int:
        """The largest length seen."""
        return len(self._counts) - 1

    @property
    def mean(self) -> float:
        """Mean length."""
        return float(self._counts @ np.arange(len(self._counts))) / self.total

    def quantiles(self, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """The smallest length that at least this share of the rows does not exceed."""
        cumulative = np.cumsum(self._counts)
        ranks = np.clip(np.ceil(shares * cumulative[-1] - 1e-9), 1, cumulative[-1])
        return np.asarray(np.searchsorted(cumulative, ranks), dtype=np.float64)

    def reference(self) -> tuple[float, ...]:
        """Quantiles that stand for the distribution in a workload file."""
        shares = (np.arange(REFERENCE_POINTS) + 0.5) / REFERENCE_POINTS
        return tuple(self.quantiles(shares).tolist())

    def expected_maximum(self, draws: int) -> float:
        """Mean of the longest of `draws` independent lengths: what a static batch of that size waits for."""
        below = np.cumsum(self._counts) / self.total
        return float((1.0 - below**draws).sum())

    def describe(self, mean: Interval | None) -> Distribution:
        """The record of this distribution; `mean` has its own interval."""
        n = self.total
        found = {name: self._percentile(q, n) for name, q in PERCENTILES.items()}
        return Distribution(
            n=n,
            mean=mean or Interval(value=self.mean, low=self.mean, high=self.mean, n=1),
            p50=found["p50"],
            p90=found["p90"],
            p99=found["p99"],
            minimum=int(np.flatnonzero(self._counts)[0]),
            maximum=self.maximum,
            zeros=self.zeros,
            bins=self._bins(),
        )

    def _percentile(self, q: float, n: int) -> Interval:
        """With its distribution-free interval where the count allows one.

        Source: order statistics; ranks n·q ± z·√(n·q·(1 − q)).
        """
        value = float(self.quantiles(np.array([q]))[0])
        if n < math.log(0.05) / math.log(max(q, 0.5)):  # the largest row would not bound it
            return Interval(value=value, low=value, high=value, n=1)
        half = _Z * math.sqrt(n * q * (1 - q))
        low, high = self.quantiles(np.array([max(q - half / n, 0.0), min(q + (half + 1) / n, 1.0)]))
        return Interval(value=value, low=float(low), high=float(high), n=n)

    def _bins(self, per_decade: int = 10) -> tuple[Bin, ...]:
        """Counts between edges evenly spaced in log; empty ends are left out."""
        top = max(self.maximum, 1)
        edges = [0, 1]
        while edges[-1] <= top:
            edges.append(max(edges[-1] + 1, round(10 ** (len(edges[1:]) / per_decade))))
        edges = sorted(set(edges))
        cumulative = np.concatenate([[0], np.cumsum(self._counts)])
        bins = []
        for low, high in pairwise(edges):
            count = int(cumulative[min(high, top + 1)] - cumulative[min(low, top + 1)])
            bins.append(Bin(low=low, high=high, count=count))
        filled = [i for i, b in enumerate(bins) if b.count]
        return tuple(bins[filled[0] : filled[-1] + 1])
