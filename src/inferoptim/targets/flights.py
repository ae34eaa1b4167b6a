"""What every in-process target keeps of a request between sending it and its last token, and the loop that sends them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
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


def drive(
    requests: Sequence[TargetRequest],
    concurrency: int | None,
    add: Callable[[TargetRequest, float], str | None],
    step: Callable[[Mapping[str, Flight]], int],
) -> dict[str, Flight]:
    """Hand each request to an engine when it may go, and step the engine until all have ended; flights by request id.

    Args:
        concurrency: see `Target.run`.
        add: takes a request and the time; says why the engine refuses it, or None.
        step: makes one step, writes what came into the flights, says how many requests ended.
    """
    flights: dict[str, Flight] = {}
    waiting = deque(sorted(requests, key=lambda r: r.arrival_offset_s))
    in_flight = 0
    started = time.perf_counter()
    while waiting or in_flight:
        now = time.perf_counter()
        while waiting and _may_go(waiting[0], now - started, in_flight, concurrency):
            request = waiting.popleft()
            flights[request.request_id] = flight = Flight(now)
            flight.error = add(request, now)
            in_flight += flight.error is None
        if in_flight:
            in_flight -= step(flights)
        elif waiting:  # an open loop between two arrivals
            time.sleep(max(0.0, started + waiting[0].arrival_offset_s - time.perf_counter()))
    return flights


def _may_go(request: TargetRequest, now_s: float, in_flight: int, concurrency: int | None) -> bool:
    """Whether the next request is due: a free slot of a closed loop, or its arrival time in an open one.

    Args:
        now_s: since the run's start.
    """
    if concurrency is not None:
        return in_flight < concurrency
    return request.arrival_offset_s <= now_s
