"""Was the client the bottleneck? Its lag, its CPU and its ceiling, measured; a run that fails this is not a result.

Coordinated omission is the danger: a client that sends late, or reads late, and times from the late moment, makes a
server look better or worse than it is. Latency here counts from the arrival that was due, and the lag is shown.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import numpy as np

from inferoptim.records.load_schema import ClientHealth, SelfTest
from inferoptim.records.statistics import PERCENTILE_MIN_N, PERCENTILES

TICK_S = 0.01
MAX_CPU_SHARE = 0.9  # of one core: above it the event loop queues
MAX_CEILING_SHARE = 0.7  # of the self-test's rate
DEFAULT_ALLOWED_LAG_S = 0.02


class LoopWatch:
    """A timer every 10 ms in the client's own event loop: how late it fires is how late anything here is seen."""

    def __init__(self) -> None:
        self.late_s: list[float] = []
        self._task: asyncio.Task[None] | None = None
        self._cpu_s = self._wall_s = 0.0

    def __enter__(self) -> LoopWatch:
        self._cpu_s, self._wall_s = time.process_time(), time.perf_counter()
        self._task = asyncio.get_running_loop().create_task(self._tick())
        return self

    def __exit__(self, *_: object) -> None:
        self._cpu_s, self._wall_s = time.process_time() - self._cpu_s, time.perf_counter() - self._wall_s
        if self._task is not None:
            self._task.cancel()

    @property
    def cpu_share(self) -> float:
        """CPU seconds of this process per second, between enter and exit."""
        return self._cpu_s / self._wall_s if self._wall_s > 0 else 0.0

    async def _tick(self) -> None:
        while True:
            due = time.perf_counter() + TICK_S
            await asyncio.sleep(TICK_S)
            self.late_s.append(time.perf_counter() - due)


def spread(values: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 where n allows, and max."""
    if not values:
        return {}
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    out = percentiles(ordered)
    out["max"] = float(ordered[-1])
    return out


def percentiles(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Order statistics, each only where n is enough (P95: 59, P99: 299)."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n = len(ordered)
    return {
        name: float(ordered[min(n - 1, max(0, int(np.ceil(q * n)) - 1))])
        for name, q in PERCENTILES.items()
        if n >= PERCENTILE_MIN_N[name]
    }


def judge(
    send_lags_s: Sequence[float],
    watch: LoopWatch,
    *,
    allowed_lag_s: float,
    requests_per_s: float,
    tokens_per_s: float,
    self_test: SelfTest | None,
    client_errors: int = 0,
) -> ClientHealth:
    """The verdict on one stage. The tail that is judged is P99 where n allows, else P95, else the maximum."""
    send, loop = spread(send_lags_s), spread(watch.late_s)
    reasons = []
    for what, lags in (("sent requests late", send), ("event loop ran late", loop)):
        name = next((name for name in ("p99", "p95", "max") if name in lags), None)
        if name is not None and lags[name] > allowed_lag_s:
            reasons.append(f"{what}: {lags[name] * 1e3:.1f} ms ({name}), allowed {allowed_lag_s * 1e3:g} ms")
    if watch.cpu_share > MAX_CPU_SHARE:
        reasons.append(f"used {watch.cpu_share:.0%} of one core")
    share = None
    if self_test is not None:
        share = max(requests_per_s / self_test.requests_per_s, tokens_per_s / self_test.output_tokens_per_s)
        if share > MAX_CEILING_SHARE:
            reasons.append(f"ran at {share:.0%} of what it reaches against a server that answers at once")
    if client_errors:
        reasons.append(f"{client_errors} requests could not be sent (file descriptors)")
    return ClientHealth(
        send_lag_s=send,
        loop_lag_s=loop,
        cpu_share=watch.cpu_share,
        allowed_lag_s=allowed_lag_s,
        ceiling_share=share,
        valid=not reasons,
        reasons=tuple(reasons),
    )
