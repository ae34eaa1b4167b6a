"""The requests of a run, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from inferoptim.errors import ConfigError


class TokenizerLike(Protocol):
    """What is needed of a tokenizer; `models.tokenizer.Tokenizer` fits."""

    vocab_size: int
    special_ids: frozenset[int]

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str: ...

    @property
    def has_chat_template(self) -> bool: ...

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True
    ) -> str: ...


@dataclass(frozen=True, slots=True)
class WorkloadRequest:
    """One request: what the model sees and how many tokens it must produce."""

    prompt_token_ids: tuple[int, ...]  # special tokens and chat template included
    max_tokens: int  # produced exactly: the end of sequence is ignored
    arrival_s: float | None = None  # since the run's start; None = as soon as a slot is free
    tag: str = ""  # 'en', 'fr', 'synthetic', or what a prompts file says
    source: str = ""  # 'prompts.jsonl line 7' where it came from a file


@dataclass(frozen=True, slots=True)
class Workload:
    """The requests of one run."""

    name: str
    fingerprint: str  # of the requests alone: equal fingerprints are equal work
    requests: tuple[WorkloadRequest, ...]
    notes: tuple[str, ...] = ()  # what a reader of the results must know

    @property
    def longest_tokens(self) -> int:
        """Prompt and output of the longest request: the context that the engine must hold."""
        return max(len(r.prompt_token_ids) + r.max_tokens for r in self.requests)

    @property
    def prompt_tokens(self) -> int:
        """Of all requests."""
        return sum(len(r.prompt_token_ids) for r in self.requests)

    @property
    def output_tokens(self) -> int:
        """Of all requests."""
        return sum(r.max_tokens for r in self.requests)

    def check_fits(self, max_model_len: int) -> None:
        """Refuse what the model's context cannot hold.

        Raises:
            ConfigError: the first request that is too long, with its place and its lengths.
        """
        for number, request in enumerate(self.requests, 1):
            prompt = len(request.prompt_token_ids)
            if prompt + request.max_tokens > max_model_len:
                place = request.source or f"workload {self.name}, request {number}"
                raise ConfigError(
                    f"{place}: {prompt} prompt tokens and {request.max_tokens} new ones exceed the context of "
                    f"{max_model_len} tokens; ask for fewer tokens or use a model of a longer context"
                )
