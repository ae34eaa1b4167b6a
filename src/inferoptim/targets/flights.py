"""What every in-process target keeps of a request between sending it and its last token, and when it may send one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from inferoptim.targets.base import TargetRequest, TargetResponse


@dataclass(slots=True)
class Flight:
    """One request under way. Times are `time.perf_counter()`."""

    sent_s: float
    token_ids: list[int] = field(default_factory=list)
    times_s: list[float] = field(
        default_factory=list
    )  # of each token; empty where the target does not stream
    finished_s: float | None = None
    cached: int = 0
    error: str | None = None

    def take(self, token_ids: Sequence[int], at_s: float) -> None:
        """Tokens that arrived together."""
        self.token_ids.extend(token_ids)
        self.times_s.extend([at_s] * len(token_ids))

    def response(self, request: TargetRequest, *, streamed: bool = True) -> TargetResponse:
        """What the bench is told; `streamed` False: only the end has a time."""
        last = self.times_s[-1] if self.times_s else self.sent_s
        return TargetResponse(
            request_id=request.request_id,
            token_ids=tuple(self.token_ids),
            sent_s=self.sent_s,
            token_times_s=tuple(self.times_s) if streamed else None,
            finished_s=last if self.finished_s is None else self.finished_s,
            num_cached_prompt_tokens=self.cached,
            error=self.error,
        )


def may_go(request: TargetRequest, now_s: float, in_flight: int, concurrency: int | None) -> bool:
    """Whether the next request is due: a free slot of a closed loop, or its arrival time in an open one.

    Args:
        now_s: since the run's start.
    """
    if concurrency is not None:
        return in_flight < concurrency
    return request.arrival_offset_s <= now_s
