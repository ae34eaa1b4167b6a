"""The two values that pass between the scheduler and the runner. Plain data: no torch, no behaviour.

A `StepPlan` says what one step computes; a `StepResult` says what came out. The runner keeps a persistent batch:
row ``slot`` holds one running sequence's tokens, block table and sampling parameters, so that a plan carries only
what changed. The runner appends the tokens it samples to its own rows; the scheduler never ships decoded tokens back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from inferoptim.config import SamplingParams
from inferoptim.engine.request import TokenLogprobs


@dataclass(frozen=True, slots=True)
class Admission:
    """A sequence that takes a row of the batch at this step (new, or back after a preemption)."""

    slot: int  # the row; free until now
    request_id: str
    token_ids: tuple[int, ...]  # every known token: prompt, then any generated before a preemption
    num_prompt: int  # of those, the prompt (penalties tell prompt from output)
    sampling: SamplingParams


class ScheduledSequence(NamedTuple):  # thousands a second: cheaper to make than a frozen dataclass
    """What one sequence does in this step: compute KV for tokens [start, start + num_tokens)."""

    slot: int
    start: int  # tokens already computed = position of the first token of this step
    num_tokens: int  # known tokens and draft proposals computed in this step, >= 1
    num_draft: int  # the last num_draft of them are proposals to verify; they follow the last known token
    samples: bool  # the step reaches the last known token, so it yields at least one new token


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One scheduling decision. Order of effect: `released`, `admitted`, `new_blocks`, then compute `sequences`."""

    step_id: int  # 0, 1, 2 … ; a result carries the same number
    sequences: tuple[ScheduledSequence, ...]
    released: tuple[int, ...] = ()  # rows whose sequence finished, was aborted or preempted
    admitted: tuple[Admission, ...] = ()
    new_blocks: tuple[tuple[int, tuple[int, ...]], ...] = ()  # (slot, block ids appended to its table)
    draft_tokens: tuple[
        tuple[int, tuple[int, ...]], ...
    ] = ()  # (slot, proposals) of the sequences that verify
    num_steps: int = 1  # > 1: every sequence decodes this many tokens in a row, each from the one before

    @property
    def num_tokens(self) -> int:
        return sum(s.num_tokens for s in self.sequences) * self.num_steps


class SequenceResult(NamedTuple):
    """What one sequence gained: its new tokens (one, or accepted proposals plus one)."""

    slot: int
    token_ids: tuple[
        int, ...
    ]  # empty when the sequence did not sample; may run past its end in a plan of many steps
    logprobs: tuple[TokenLogprobs, ...] | None = None  # one per token, when asked for
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = (
        None  # of the prompt tokens computed in this step, when asked
    )


@dataclass(frozen=True, slots=True)
class StepResult:
    """The outcome of a plan, in the order of its sequences."""

    step_id: int
    sequences: tuple[SequenceResult, ...]
    step_s: float = 0.0  # wall time of execute(), host clock
