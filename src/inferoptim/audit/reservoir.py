"""A uniform sample of a stream, vectorised: the rows with the smallest of random keys."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Reservoir:
    """Keeps at most `size` rows of what is added, each with equal chance; the same rows for one seed.

    Source: bottom-k sampling, Cohen and Kaplan 2007.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self._size = size
        self._rng = np.random.default_rng(seed)
        self._keys = np.zeros(0)
        self._rows: NDArray[Any] | None = None
        self._bound = 1.0

    def add(self, rows: NDArray[Any]) -> None:
        """Offer `rows` [n, …]."""
        keys = self._rng.random(len(rows))
        chosen = keys < self._bound
        if not chosen.any():
            return
        kept = rows[chosen]
        self._rows = kept if self._rows is None else np.concatenate([self._rows, kept])
        self._keys = np.concatenate([self._keys, keys[chosen]])
        if len(self._keys) > 2 * self._size:
            self._shrink()

    def _shrink(self) -> None:
        if self._rows is None or len(self._keys) <= self._size:
            return
        order = np.argpartition(self._keys, self._size)[: self._size]
        order.sort()  # keeps the stream's order
        self._rows, self._keys = self._rows[order], self._keys[order]
        self._bound = float(self._keys.max())

    @property
    def rows(self) -> NDArray[Any]:
        """The sample, in the order of the stream."""
        self._shrink()
        return np.zeros(0) if self._rows is None else self._rows
