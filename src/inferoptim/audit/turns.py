"""Conversations: how many turns they have, from the messages or from session ids."""

from __future__ import annotations

from collections import Counter

import numpy as np

from inferoptim.audit.blocks import BlockSums, ratio
from inferoptim.audit.lengths import LengthCounts
from inferoptim.audit.rows import Batch
from inferoptim.records.audit_record import TurnsRecord
from inferoptim.records.schema import Interval

MAX_SESSIONS = 500_000  # told apart; above this, sessions are sampled by their hash


class Turns:
    """Counts requests per session, and the turn that each request is."""

    def __init__(self, max_sessions: int = MAX_SESSIONS) -> None:
        self._max, self._halvings = max_sessions, 0
        self._sessions: Counter[int] = Counter()
        self._numbers = LengthCounts()
        self._sums = BlockSums("turn")

    def add(self, batch: Batch) -> None:
        """Append a batch."""
        if batch.turns is not None:
            known = batch.turns[batch.turns > 0]
            self._numbers.add(known)
            self._sums.add(turn=known.astype(np.float64))
        if batch.session is not None:
            sessions = batch.session[batch.session != 0]
            kept, counts = np.unique(sessions[self._sampled(sessions)], return_counts=True)
            for session, count in zip(kept.tolist(), counts.tolist(), strict=True):
                self._sessions[session] += count
            while len(self._sessions) > self._max:
                self._halvings += 1
                ids = np.fromiter(self._sessions, dtype=np.int64, count=len(self._sessions))
                left = ids[self._sampled(ids)].tolist()
                self._sessions = Counter({session: self._sessions[session] for session in left})

    def _sampled(self, sessions: np.ndarray) -> np.ndarray:
        # ids are salted hashes; their lowest bit is fixed
        return np.asarray((sessions >> 1) & ((1 << self._halvings) - 1) == 0)

    def describe(self) -> TurnsRecord | None:
        """The record; sessions first, as they see whole conversations; None where neither is known."""
        if self._sessions:
            counts = LengthCounts()
            sizes = np.fromiter(self._sessions.values(), dtype=np.int64, count=len(self._sessions))
            counts.add(sizes)
            sums = BlockSums("turn")
            sums.add(turn=sizes.astype(np.float64))
            return self._record("sessions", counts, sums, len(self._sessions) << self._halvings)
        if self._numbers.total:
            return self._record("messages", self._numbers, self._sums, None)
        return None

    def _record(self, basis: str, counts: LengthCounts, sums: BlockSums, sessions: int | None) -> TurnsRecord:
        p50, p90 = counts.quantiles(np.array([0.5, 0.9])).tolist()
        mean = sums.interval(ratio("turn", "n"), "turns")
        return TurnsRecord(
            basis=basis,
            sessions=sessions,
            mean=mean or Interval(value=counts.mean, low=counts.mean, high=counts.mean, n=1),
            p50=p50,
            p90=p90,
            maximum=counts.maximum,
            sampled_share=1 / (1 << self._halvings),
        )
