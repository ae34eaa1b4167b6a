"""The one interface that the bench drives: our engine, transformers, vLLM, TensorRT-LLM, any OpenAI endpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from inferoptim.config import SamplingParams


@dataclass(frozen=True, slots=True)
class TargetRequest:
    """One request of the workload. Exactly `sampling.max_tokens` tokens are produced when `ignore_eos` is set."""

    request_id: str
    prompt: str
    prompt_token_ids: tuple[int, ...]  # what the model sees, chat template applied
    sampling: SamplingParams
    arrival_offset_s: float = 0.0  # relative to the run's start; 0 = all at once


@dataclass(slots=True)
class TargetResponse:
    """What came back, with host timestamps (``time.perf_counter()``)."""

    request_id: str
    token_ids: tuple[int, ...]
    sent_s: float
    token_times_s: (
        tuple[float, ...] | None
    )  # when each token reached the client; None where the target does not stream
    finished_s: float
    num_cached_prompt_tokens: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class TargetInfo:
    """What the target says of itself once loaded; stored with the run. Unknown is None, never 0."""

    name: str
    version: str
    settings: Mapping[str, Any]
    load_s: float | None = None
    weight_bytes: int | None = None  # weights as held in memory
    kv_capacity_bytes: int | None = None
    kv_capacity_tokens: int | None = None


@runtime_checkable
class KVMeter(Protocol):
    """A target that knows what its KV-cache holds; asked by the telemetry thread while `run` is under way."""

    def kv_usage(self) -> Mapping[str, int]:
        """kv_used_tokens, kv_reserved_tokens, running, waiting."""
        ...


class Target(Protocol):
    """Life: construct → load() → run() any number of times → close(). One process drives one target."""

    def load(self) -> TargetInfo: ...

    def run(
        self, requests: Sequence[TargetRequest], *, concurrency: int | None = None
    ) -> list[TargetResponse]:
        """Serve all requests to the end; responses in the order of the requests.

        Args:
            concurrency: keep so many requests in flight, sending the next one when one ends (a closed loop); None: send
                each at its arrival offset, whatever is still running (an open loop).
        """
        ...

    def reset(self) -> None:
        """Forget everything that a previous run could have warmed (the prefix cache above all)."""
        ...

    def counters(self) -> dict[str, float]:
        """Monotonic counters since load (prefix_cache_hit_tokens, preemptions, draft_accepted_tokens, …)."""
        ...

    def logits(self, token_ids: Sequence[int]) -> Any:
        """Float32 logits [len(token_ids), V] of one sequence, for the quality gate; None where they cannot be had."""
        ...

    def close(self) -> None: ...
