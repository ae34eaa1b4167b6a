"""Invariants between sequences and what they own. No torch."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

from inferoptim.engine.kv_memory import Tracked
from inferoptim.engine.request import Status


def check_accounts(
    everyone: SequenceOf[Tracked], running: SequenceOf[Tracked], waiting: SequenceOf[Tracked], block_size: int
) -> None:
    """Sequences stand in one queue, in order of arrival, and own what their state says.

    Raises:
        AssertionError: naming what disagrees.
    """
    assert len(running) + len(waiting) == len(everyone), "a sequence is lost or in two queues"
    for seq in running:
        assert seq.status is Status.RUNNING
        assert 0 <= seq.num_computed < len(seq.token_ids) < seq.max_total
        assert seq.pending >= 0, "more tokens came than were on their way"
        assert 0 <= seq.flying <= len(seq.token_ids) - seq.num_computed
        reach = seq.num_computed if len(seq.token_ids) - seq.num_computed == 1 else len(seq.token_ids)
        assert len(seq.block_table) * block_size >= reach, "known tokens of a prompt without a block"
    for seq in waiting:
        assert seq.status in (Status.WAITING, Status.PREEMPTED)
        owned = (seq.block_table, seq.slot, seq.num_computed, seq.pending, seq.flying)
        assert owned == ([], -1, 0, 0, 0), f"a waiting sequence owns something: {owned}"
    order = [id(seq) for seq in everyone]
    assert order == [id(seq) for seq in (*running, *waiting)], "not in order of arrival"
