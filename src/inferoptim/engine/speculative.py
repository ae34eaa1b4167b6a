"""Speculative decoding: who proposes tokens, and how many are worth proposing.

Every proposal is a single sequence of tokens; the target verifies it in one step and the sampler accepts exactly what
it would have drawn anyway (see sampler.py), so a proposer can be wrong but never change an output.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as SequenceOf
from typing import Protocol

from inferoptim.config import SamplingParams
from inferoptim.engine.request import Sequence
from inferoptim.engine.runner import Runner
from inferoptim.engine.step import Admission, ScheduledSequence, StepPlan

_PROBE_EVERY = 32  # least steps between trials of the other answer: speculation judged a loss, or a gain
_PROBE_SHARE = 0.03  # most of the time that goes into trying speculation while it is a loss
_DECAY_COST = 0.95  # weight of the past in what a step costs
_DECAY_OUTDATED = 0.25  # the same, of a past that said more than twice what was seen
_MOST_OF_MEAN = 4.0
_MOST_AT_FIRST = 8.0
_UNSEEN = 2  # verifying steps at the start that are not timed: kernels may be compiled in them
_STEPS_OF_WAITING = 4  # a plan's, while proposals may come any moment
_LOOK_EVERY = 8  # plans launched ahead of each other while it is a loss, before it is thought over again; twice as many after
_LOOK_AT_LEAST_EVERY = 128  # each time that it still was, up to this
_WORTH = 1.1  # what speculation must promise: what it costs and yields is known to some ten percent
_DECAY = 0.97  # weight of the past in the running estimates


class Proposer(Protocol):
    """Proposes continuations of running sequences."""

    costs_nothing: bool  # worth asking before it is known whether its answers will be used

    def propose(self, sequences: SequenceOf[Sequence], max_tokens: int) -> dict[str, list[int]]:
        """At most `max_tokens` proposals for each sequence that has some, by request id."""
        ...

    def forget(self, request_id: str) -> None:
        """The sequence ended or was preempted."""
        ...


class PromptLookupProposer:
    """Proposes what followed the latest earlier occurrence of the sequence's last n tokens, longest n first.

    Pays on summaries, edits and code, where the output repeats the input. Each sequence keeps a dictionary from
    n-gram to the position after it, extended as tokens arrive: O(1) a token.
    Source: Saxena 2023, "Prompt Lookup Decoding".
    """

    costs_nothing = True

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        self._sizes = tuple(range(longest, shortest - 1, -1))
        self._tables: dict[str, tuple[dict[tuple[int, ...], int], int]] = {}

    def propose(self, sequences: SequenceOf[Sequence], max_tokens: int) -> dict[str, list[int]]:
        proposals = {}
        for sequence in sequences:
            tokens = self._lookup(sequence.request.request_id, sequence.token_ids, max_tokens)
            if tokens:
                proposals[sequence.request.request_id] = tokens
        return proposals

    def forget(self, request_id: str) -> None:
        self._tables.pop(request_id, None)

    def _lookup(self, request_id: str, tokens: list[int], max_tokens: int) -> list[int]:
        table, indexed = self._tables.get(request_id, ({}, 0))
        # n-grams that end before the last token: one that ends at it would match itself
        last = len(tokens)
        for n in self._sizes:
            first = max(indexed, n)
            if first >= last:
                continue
            grams = zip(*(tokens[first - n + i : last - n + i] for i in range(n)), strict=True)
            table.update(zip(grams, range(first, last), strict=True))
        self._tables[request_id] = (table, len(tokens))
        for n in self._sizes:
            if len(tokens) > n:
                position = table.get(tuple(tokens[-n:]))
                if position is not None:
                    return tokens[position : position + max_tokens]
        return []


class DraftModelProposer:
    """A smaller model (or the target's first layers, quantised) decodes greedily ahead of the target.

    Its KV-cache has the target's blocks under the same ids, so it needs no allocator of its own. Rows follow the
    target's slots. After a verification its computed length is cut back to what it shares with the target.
    """

    costs_nothing = False

    def __init__(self, runner: Runner, block_size: int) -> None:
        self._runner = runner
        self._block_size = block_size
        self._rows: dict[str, _DraftRow] = {}
        self._released: list[int] = []
        self._step_id = 0

    def propose(self, sequences: SequenceOf[Sequence], max_tokens: int) -> dict[str, list[int]]:
        rows = []
        for sequence in sequences:
            room = len(sequence.block_table) * self._block_size - sequence.num_known
            if room > 0:
                rows.append((sequence, self._catch_up(sequence), min(max_tokens, room)))
        proposals: dict[str, list[int]] = {s.request.request_id: [] for s, _, _ in rows}
        for depth in range(max_tokens):
            active = [(s, row) for s, row, room in rows if depth < room]
            if not active:
                break
            for (sequence, row), tokens in zip(active, self._step(active), strict=True):
                row.tokens.append(tokens)
                proposals[sequence.request.request_id].append(tokens)
        return proposals

    def forget(self, request_id: str) -> None:
        row = self._rows.pop(request_id, None)
        if row is not None:
            self._released.append(row.slot)

    def _catch_up(self, sequence: Sequence) -> _DraftRow:
        """Bring the row to the target's tokens; what the target rejected is computed again."""
        request_id = sequence.request.request_id
        row = self._rows.get(request_id)
        if row is not None and row.slot != sequence.slot:
            self.forget(request_id)
            row = None
        if row is None:
            row = _DraftRow(sequence.slot)
            self._rows[request_id] = row
        shared = _common_prefix(row.tokens, sequence.token_ids, start=row.verified)
        # at least the last token is computed (again), also for a sequence that gained nothing since the last proposal
        row.computed = min(row.computed, shared, len(sequence.token_ids) - 1)
        row.verified = len(sequence.token_ids)
        row.tokens = list(sequence.token_ids)
        row.stale = True
        return row

    def _step(self, active: list[tuple[Sequence, _DraftRow]]) -> list[int]:
        admitted, blocks, scheduled = [], [], []
        for sequence, row in active:
            if row.stale:
                admitted.append(
                    Admission(
                        row.slot, sequence.request.request_id, tuple(row.tokens), sequence.num_prompt, _GREEDY
                    )
                )
                blocks.append((row.slot, tuple(sequence.block_table)))
                row.stale = False
            scheduled.append(
                ScheduledSequence(row.slot, row.computed, len(row.tokens) - row.computed, 0, True)
            )
            row.computed = len(row.tokens)
        plan = StepPlan(
            self._step_id, tuple(scheduled), tuple(self._released), tuple(admitted), new_blocks=tuple(blocks)
        )
        self._released.clear()
        self._step_id += 1
        return [r.token_ids[0] for r in self._runner.execute(plan).sequences]


class _DraftRow:
    """One sequence as the draft model has it."""

    __slots__ = ("computed", "slot", "stale", "tokens", "verified")

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.tokens: list[int] = []  # the target's tokens, then own proposals
        self.computed = 0  # of those, how many have KV in the draft's cache
        self.verified = 0  # of those, how many were the target's at the latest catch-up
        self.stale = True  # the draft runner's row must be placed again before its next step


_GREEDY = SamplingParams(temperature=0.0)


def _common_prefix(a: list[int], b: list[int], start: int) -> int:
    """Length of the shared prefix of `a` and `b`, known to be shared up to `start`."""
    n = min(len(a), len(b))
    i = min(start, n)
    while i < n and a[i] == b[i]:
        i += 1
    return i


class StepCost:
    """Seconds of one kind of step as a + b·tokens: running least squares over the steps seen.

    One slow step (something compiled, a neighbour on the machine) counts for at most four times the mean.
    """

    def __init__(self) -> None:
        self._w = self._x = self._y = self._xx = self._xy = 0.0

    @property
    def known(self) -> bool:
        """Whether a step of this kind was seen."""
        return self._w > 0

    def observe(self, num_tokens: float, step_s: float) -> None:
        """One step."""
        x, y, kept = float(num_tokens), step_s, _DECAY_COST
        if self.known:
            if 2 * y < self.at(x):
                kept = _DECAY_OUTDATED
            y = min(y, _MOST_OF_MEAN * self._y / self._w)
        self._w = self._w * kept + 1
        self._x = self._x * kept + x
        self._y = self._y * kept + y
        self._xx = self._xx * kept + x * x
        self._xy = self._xy * kept + x * y

    def at(self, num_tokens: float) -> float:
        """Seconds of a step of so many tokens; never falling with their number, never below a tenth of the mean."""
        mean_x, mean_y = self._x / self._w, self._y / self._w
        variance = self._xx / self._w - mean_x**2
        slope = max((self._xy / self._w - mean_x * mean_y) / variance, 0.0) if variance >= 0.25 else 0.0
        return max(mean_y + slope * (num_tokens - mean_x), 0.1 * mean_y)


class DraftLength:
    """How many tokens to propose, from the acceptance and the step costs measured so far.

    Plain steps, steps in a plan of many, and verifying steps are timed apart: on a GPU the first are replays of a graph and the last may
    not be, so that one line through all would hide what verification costs. A proposal's token is accepted with probability alpha
    (running mean), so d proposals yield 1 + alpha + … + alpha^d tokens, for the share of sequences that get any. The length that
    maximises tokens per second is taken; 0 when speculation is a loss, as it is for large batches on a machine already bound
    by arithmetic. Either answer is tried against the other from time to time, a loss no more often than a small share of
    the time pays for.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._accepted, self._proposed = 3.0, 5.0  # prior: 0.6, worth five observations
        self._coverage = 1.0  # share of the sequences asked for that got proposals
        self._plain, self._many, self._verify = StepCost(), StepCost(), StepCost()
        self._verified = 0
        self._proposal_s = 0.0
        self._since_other = 0  # steps since the other answer was last tried
        self._plain_s = 0.0  # seconds without proposals since they were last tried

    def observe_plain(
        self, num_sequences: int, step_s: float, steps: int = 1, *, in_many: bool = False
    ) -> None:
        """`steps` steps without proposals, `step_s` each; `in_many`: of a plan of many."""
        (self._many if in_many else self._plain).observe(num_sequences, step_s)
        self._plain_s += step_s * steps

    def observe_verification(self, num_tokens: int, step_s: float) -> None:
        """A step that verified proposals, `num_tokens` computed in all."""
        self._verified += 1
        if self._verified <= _UNSEEN:
            return
        if (
            not self._verify.known and self._plain.known
        ):  # nothing to compare the first one with but a plain step
            step_s = min(step_s, _MOST_AT_FIRST * self._plain.at(num_tokens))
        self._verify.observe(num_tokens, step_s)

    def observe_acceptance(self, proposed: int, accepted: int) -> None:
        """Of `proposed` tokens the first `accepted` were right; those after the first wrong one were not tried."""
        tried = min(proposed, accepted + 1)
        self._proposed = self._proposed * _DECAY + tried
        self._accepted = self._accepted * _DECAY + accepted

    def observe_proposal(self, num_tokens: int, seconds: float, share: float) -> None:
        """Proposing `num_tokens` a sequence took `seconds`; this share of the sequences got some."""
        if num_tokens:
            self._proposal_s = self._proposal_s * _DECAY + (seconds / num_tokens) * (1 - _DECAY)
            self._coverage = self._coverage * _DECAY + share * (1 - _DECAY)

    def choose(self, num_sequences: int, share: float | None = None) -> int:
        """Proposals a sequence for the next step.

        Args:
            share: of the sequences, that have proposals now; None: as many as lately.
        """
        if share == 0 or not (self._plain.known or self._many.known):
            return 0  # what a step costs without any must be known first
        if not self._verify.known:
            return self._longest
        best = self._best(
            num_sequences, self._coverage if share is None else share, in_hand=share is not None
        )
        self._since_other += 1
        if self._since_other < _PROBE_EVERY or not (best or self._may_try(num_sequences)):
            return best
        self._since_other, self._plain_s = 0, 0.0
        return 0 if best else 1

    def _may_try(self, n: int) -> bool:
        """Whether so much time went by without proposals that a step with one a sequence is a small share of it."""
        extra = self._verify.at(2 * n) - (self._many if self._many.known else self._plain).at(n)
        return extra <= _PROBE_SHARE * self._plain_s

    def may_soon_pay(self, num_sequences: int) -> bool:
        """Whether verifying would pay if a good many sequences had proposals: one deviation more than they have on average.

        One sequence that quotes for a while has them at every step then, whatever the average says; of many some always do.
        """
        if not self._verify.known or not (self._plain.known or self._many.known):
            return True
        c = self._coverage
        often = min(1.0, c + (c * (1 - c) / num_sequences) ** 0.5)
        return self._best(num_sequences, often, in_hand=False) > 0

    def _best(self, n: int, coverage: float, *, in_hand: bool) -> int:
        """The length that pays most; `coverage` is the chance of a sequence to have proposals, or the share that has."""
        alpha = min(self._accepted / self._proposed, 0.99)
        plain = (self._plain if self._plain.known else self._many).at(n)
        best, best_rate = 0, _WORTH * n / (self._many if self._many.known else self._plain).at(n)
        with_any = 1.0 if in_hand else 1 - (1 - coverage) ** n
        served = n * coverage  # of all sequences, over verifying and plain steps
        for d in range(1, self._longest + 1):
            gained = n - served + served * (1 - alpha ** (d + 1)) / (1 - alpha)
            tokens = n + d * served / max(with_any, 1e-9)
            cost = with_any * self._verify.at(tokens) + (1 - with_any) * plain + d * self._proposal_s
            if gained / cost > best_rate:
                best, best_rate = d, 1.01 * gained / cost
        return best


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
