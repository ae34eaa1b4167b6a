"""Who gets in: a bounded number of requests inside, and what to tell those that must come back."""

from __future__ import annotations

import math
import time
from collections import deque

from inferoptim.errors import CapacityError

_WINDOW = 64  # endings that the estimate of the service rate looks back on


class QueueFullError(CapacityError):
    """Too many requests wait already."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Admission:
    """Counts sequences inside the server.

    Args:
        max_queue: how many may wait beyond those that the engine runs at once.
    """

    def __init__(self, max_queue: int) -> None:
        self._max_queue = max_queue
        self._endings: deque[float] = deque(maxlen=_WINDOW)
        self.inside = 0

    def enter(self, sequences: int, max_num_seqs: int) -> None:
        """Take room for a request of so many sequences; `leave` gives it back.

        Raises:
            QueueFullError: there is none; nothing was taken.
        """
        limit = max_num_seqs + self._max_queue
        if self.inside + sequences > limit:
            raise QueueFullError(
                f"the queue is full: {self.inside} sequences are inside, {limit} may be "
                f"({max_num_seqs} running, {self._max_queue} waiting), and this request adds {sequences}",
                self.retry_after_s(sequences),
            )
        self.inside += sequences

    def leave(self, sequences: int) -> None:
        """Give room back."""
        self.inside -= sequences
        now_s = time.perf_counter()
        self._endings.extend([now_s] * min(sequences, _WINDOW))

    def retry_after_s(self, sequences: int) -> int:
        """Seconds until so many sequences have probably ended, at the recent rate; 1…60, and 1 when nothing is known."""
        if len(self._endings) < 2:
            return 1
        span_s = time.perf_counter() - self._endings[0]
        return max(1, min(60, math.ceil(sequences * span_s / len(self._endings))))
