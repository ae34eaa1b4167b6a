"""What the scheduler decides by, and the plan that it is building. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from inferoptim.engine.kv_memory import Tracked
from inferoptim.engine.step import Admission, ScheduledSequence
from inferoptim.errors import ConfigError


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """The part of `EngineConfig` that decides what runs when. Sizes are resolved: nothing is None or "auto"."""

    max_num_seqs: int  # rows of the persistent batch
    max_num_batched_tokens: int  # token budget of a step
    max_model_len: int  # longest prompt + output, tokens
    block_size: int  # tokens in a KV block
    in_flight_batching: bool = True
    paged_kv: bool = True
    prefix_caching: bool = True
    chunked_prefill: bool = True

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len", "block_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.prefix_caching and not self.paged_kv:
            raise ConfigError("prefix_caching needs paged_kv: shared prefixes are shared blocks")
        if self.chunked_prefill and not self.in_flight_batching:
            raise ConfigError(
                "chunked_prefill needs in_flight_batching: chunks ride along with running decodes"
            )


@dataclass(slots=True)
class Draft:
    """A plan being built."""

    budget: int  # tokens left
    sequences: list[ScheduledSequence] = field(default_factory=list)
    members: list[Tracked] = field(default_factory=list)  # parallel to sequences
    admitted: list[Admission] = field(default_factory=list)
    new_blocks: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    draft_tokens: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)

    def compute(self, seq: Tracked, num_tokens: int, num_draft: int, samples: bool) -> None:
        self.budget -= num_tokens
        start = seq.num_computed + seq.flying
        self.sequences.append(ScheduledSequence(seq.slot, start, num_tokens, num_draft, samples))
        self.members.append(seq)


_STEPS_UNTIL_MORE = 64


@dataclass(slots=True)
class Limits:
    """How much of its configuration the scheduler uses: less after the device ran out of memory, step by step all again.

    Args:
        most_rows, most_tokens: the configuration's.
    """

    most_rows: int
    most_tokens: int
    rows: int = 0  # sequences that may run
    tokens: int = 0  # budget of a step
    _good: int = 0  # steps since the last change

    def __post_init__(self) -> None:
        self.rows, self.tokens = self.most_rows, self.most_tokens

    def shrink(self, rows: int, tokens: int) -> bool:
        """Half of what a step that failed took; False when there is nothing left to give up."""
        less_rows, less_tokens = max(1, rows // 2), max(1, tokens // 2)
        smaller = less_rows < rows or less_tokens < min(tokens, self.tokens)
        self.rows, self.tokens = min(self.rows, less_rows), min(self.tokens, less_tokens)
        self._good = 0
        return smaller

    def step_passed(self) -> None:
        """A step went well; after some of them twice as much is tried."""
        if self.rows < self.most_rows or self.tokens < self.most_tokens:
            self._good += 1
            if self._good >= _STEPS_UNTIL_MORE:
                self.rows = min(2 * self.rows, self.most_rows)
                self.tokens = min(2 * self.tokens, self.most_tokens)
                self._good = 0
