"""Speculative decoding as the step loop uses it: proposals when they pay, plans as long as may be when they do not."""

from __future__ import annotations

import time
from collections.abc import Sequence as SequenceOf

from inferoptim.engine.draft_length import DraftLength
from inferoptim.engine.proposers import Proposer
from inferoptim.engine.request import Sequence
from inferoptim.engine.step import StepPlan

_STEPS_OF_WAITING = 4  # a plan's, while proposals may come any moment
_LOOK_EVERY = 8  # plans launched ahead of each other while it is a loss, before it is thought over again; twice as many after
_LOOK_AT_LEAST_EVERY = 128  # each time that it still was, up to this


class Speculator:
    """Proposer and length control together, as the step loop uses them."""

    def __init__(self, proposer: Proposer, longest: int) -> None:
        self._proposer = proposer
        self._longest = longest
        self._length = DraftLength(longest)
        self._paused = self._waits = False
        self._saw_other = (
            False  # a plan as long as it would be without speculation: what that costs is to be beaten
        )
        self._ahead = 0  # plans launched ahead since it was last thought over
        self._look_every = _LOOK_EVERY
        self._looked_at = 0  # sequences then

    def propose(self, sequences: SequenceOf[Sequence]) -> dict[str, list[int]]:
        """Proposals for the sequences whose next step is a decode; empty when speculation does not pay now."""
        ready = [s for s in sequences if s.num_known - s.num_computed == 1 and s.num_generated > 0]
        looks = self._ahead >= self._look_every
        self._paused, self._waits, self._ahead, self._looked_at = False, False, 0, len(sequences)
        if not ready:
            return {}
        if self._proposer.costs_nothing and self._length.may_soon_pay(len(ready)):
            proposals, share = self._ask(ready, self._longest)
            wanted = self._length.choose(len(ready), share)
            self._waits = not wanted and self._saw_other
            proposals = {name: tokens[:wanted] for name, tokens in proposals.items()} if wanted else {}
        else:
            wanted = self._length.choose(len(ready))
            proposals = self._ask(ready, wanted)[0] if wanted else {}
        self._paused = not wanted
        if wanted or self._waits:
            self._look_every = _LOOK_EVERY
        elif looks:
            self._look_every = min(2 * self._look_every, _LOOK_AT_LEAST_EVERY)
        return proposals

    def _ask(self, sequences: SequenceOf[Sequence], wanted: int) -> tuple[dict[str, list[int]], float]:
        """Proposals, and the share of the sequences that have some."""
        started = time.perf_counter()
        proposals = self._proposer.propose(sequences, wanted)
        share = sum(map(bool, proposals.values())) / len(sequences)
        self._length.observe_proposal(wanted, time.perf_counter() - started, share)
        return proposals, share

    def most_steps(self, planned: int) -> int:
        """Steps that the next plan may span, of the `planned` that it would without speculation.

        One while proposals are verified, all of them while speculation is a loss, few while it only has nothing to propose.
        """
        if not self._paused:
            return 1
        return min(planned, _STEPS_OF_WAITING) if self._waits else planned

    def may_run_ahead(self, num_sequences: int) -> bool:
        """Whether a plan may be launched before the outcome of the one before is known, which leaves no room for proposals.

        While speculation is a loss, mostly: to think it over the device must wait for the host. That is done ever less
        often, and at once when half of the sequences have left.
        """
        if not self._paused or self._waits:
            return False
        self._ahead += 1
        if 2 * num_sequences <= self._looked_at:
            self._look_every = _LOOK_EVERY
            return False
        return self._ahead < self._look_every

    def observe(self, plan: StepPlan, step_s: float, accepted: dict[int, int]) -> None:
        """Learn from a step: `accepted` drafts by slot."""
        if all(s.samples and s.num_tokens - s.num_draft == 1 for s in plan.sequences):  # no prompt among them
            if any(s.num_draft for s in plan.sequences):
                self._length.observe_verification(plan.num_tokens, step_s)
            else:  # a plan that is short for it waits for proposals is no measure of the long ones
                in_many = plan.num_steps > 1 and not self._waits
                step_s /= plan.num_steps
                self._length.observe_plain(len(plan.sequences), step_s, plan.num_steps, in_many=in_many)
                self._saw_other |= not self._waits
        for s in plan.sequences:
            if s.num_draft:
                self._length.observe_acceptance(s.num_draft, accepted.get(s.slot, 0))

    def forget(self, request_id: str) -> None:
        """A sequence left the batch."""
        self._proposer.forget(request_id)
