"""Who proposes tokens for speculative decoding.

Every proposal is a single sequence of tokens; the target verifies it in one step and the sampler accepts exactly what
it would have drawn anyway (see sampler.py), so a proposer can be wrong but never change an output.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import Protocol

from inferoptim.config import SamplingParams
from inferoptim.engine.request import Sequence
from inferoptim.engine.runner import Runner
from inferoptim.engine.step import Admission, ScheduledSequence, StepPlan


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
