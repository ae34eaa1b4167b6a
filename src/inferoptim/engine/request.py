"""A request and the sequence that the engine makes of it. Pure Python, no torch.

Vocabulary: a *request* is what a caller asked; a *sequence* is its state inside the engine. ``num_computed`` counts
the tokens whose KV lies in the cache; ``num_known`` the tokens known so far (prompt + generated). A step closes part
of the gap between the two; there is no prefill phase and no decode phase.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from inferoptim.config import SamplingParams


class FinishReason(str, Enum):
    """Why a sequence ended; the first three are the OpenAI API's words."""

    STOP = "stop"  # end-of-sequence, stop id or stop string
    LENGTH = "length"  # max_tokens, or the context is full
    ABORT = "abort"  # the caller left
    ERROR = "error"  # it can never run (its blocks exceed the whole cache)


class Status(Enum):
    """Where a sequence stands. PREEMPTED sequences wait again, with their generated tokens kept."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"


@dataclass(slots=True)
class TokenLogprobs:
    """Log-probabilities at one position, of the model's distribution before temperature and filters."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # (token id, logprob), likeliest first


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """What one step gave one request."""

    request_id: str
    token_ids: tuple[int, ...]  # new ones only
    finish_reason: FinishReason | None
    num_cached_tokens: int  # prompt tokens that came from the prefix cache
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """What a caller asked. Immutable; the engine never writes here."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    arrival_s: float  # time.perf_counter() when it was received
    eos_token_ids: frozenset[int] = frozenset()
    cache_salt: int = 0  # sequences share cached prefixes only under the same salt


@dataclass(slots=True, eq=False)
class Sequence:
    """A request inside the engine. Owner: the scheduler; nobody else may write to it."""

    request: Request
    token_ids: list[int]  # prompt, then generated
    status: Status = Status.WAITING
    num_computed: int = 0  # tokens whose KV is in the cache
    num_cached: int = 0  # of those, how many came from the prefix cache at the latest admission
    block_table: list[int] = field(default_factory=list)
    slot: int = -1  # row in the runner's persistent batch while RUNNING, else -1
    draft_token_ids: list[int] = field(default_factory=list)  # proposals to verify in the next step
    num_preemptions: int = 0
    finish_reason: FinishReason | None = None
    first_scheduled_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None

    @classmethod
    def from_request(cls, request: Request) -> Sequence:
        return cls(request=request, token_ids=list(request.prompt_token_ids))

    @property
    def num_known(self) -> int:
        return len(self.token_ids)

    @property
    def num_prompt(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - len(self.request.prompt_token_ids)
