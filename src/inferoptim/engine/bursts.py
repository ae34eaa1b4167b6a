"""Plans of several decode steps in a row, and plans that follow one whose outcome is not yet known. No torch.

A device that hands each step's token to the next needs the host only to stop it. So when every running sequence
decodes with tokens that the device itself can choose, one plan may span many steps, and the next plan may go out before the outcome of the latest is in.
What a sequence computes past its end is dropped. It harms nobody: those writes go to blocks that were its own when the
plan was made, and a later owner's writes come later on the device, which runs plans in order.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf

from inferoptim.engine.kv_memory import KVMemory, Tracked
from inferoptim.engine.request import Status
from inferoptim.engine.step import StepPlan

NewBlocks = tuple[int, tuple[int, ...]]


def can_burst(members: Iterable[Tracked]) -> bool:
    """Whether the device alone can choose their tokens, and only the latest token of each is not computed."""
    return all(seq.on_device and len(seq.token_ids) - seq.num_computed == 1 for seq in members)


def prompts_behind(
    plan: StepPlan, deciding: SequenceOf[Tracked], running: Iterable[Tracked]
) -> list[Tracked] | None:
    """The sequences whose prompts go on after a plan with prompts; None when its outcome must be known first.

    Args:
        plan, deciding: what is out, and whose it is.
        running: every sequence with a row, in order of arrival.
    """
    for work, seq in zip(plan.sequences, deciding, strict=True):
        if seq.status is not Status.RUNNING:
            return None  # it left meanwhile, and its row, which the device may still write to, is free
        lives_on = work.samples and len(seq.token_ids) + 1 < seq.max_total
        if lives_on or work.num_draft or not seq.on_device:
            return None
    behind = [s for s in running if not s.pending and len(s.token_ids) - s.num_computed > s.flying]
    if any(len(s.token_ids) - s.num_computed == 1 for s in behind):
        return None  # a decode for which the plan that is out had no room: it may need blocks
    return behind


def extend(
    members: SequenceOf[Tracked], most: int, memory: KVMemory, *, within_end: bool
) -> tuple[int, list[NewBlocks]]:
    """The steps that one plan for `members` may span, and the blocks that they then need, now taken.

    Args:
        members: running sequences that all `can_burst`.
        most: the most steps that are wanted.
        within_end: no longer than until the first member must end: others wait for its place, or the device cannot
            drop what a sequence computes past its end.

    Returns:
        (steps, (slot, blocks) of those that grow); 0 steps when there are no blocks for one.
    """
    room = [seq.max_total - len(seq.token_ids) - seq.pending for seq in members]
    steps = min(most, min(room) if within_end else max(room))
    size = memory.blocks.block_size
    while steps > 0:
        missing = []
        total = 0
        for seq in members:
            # the KV of its last token is never computed
            written = min(len(seq.token_ids) + seq.pending + steps, seq.max_total) - 1
            count = -(-written // size) - len(seq.block_table)
            if count > 0:
                missing.append((seq, count))
                total += count
        if total <= memory.blocks.num_free:
            return steps, [(seq.slot, tuple(memory.grow(seq, count))) for seq, count in missing]
        steps //= 2
    return 0, []
