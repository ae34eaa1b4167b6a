"""What the server counts. Plain numbers, written on the event loop; `exporter` turns them into Prometheus text.

Every latency is of one sequence (a request with n=4 has four). Token times are those of the engine's steps, so that
they do not depend on how a slow client reads; the time to the first token starts at the request's arrival.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import Any

from inferoptim.serving.messages import Stats
from inferoptim.serving.money import Account, Ledger

_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 5.0,
    7.5, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 120.0, 300.0,
)  # fmt: skip
TTFT_BUCKETS = _SECONDS
ITL_BUCKETS = (
    0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5,
    0.75, 1.0, 2.5, 5.0,
)  # fmt: skip
TOKEN_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


class Histogram:
    """Counts by bucket; `buckets` are upper bounds, inclusive, and there is one more for what lies above."""

    __slots__ = ("buckets", "counts", "sum")

    def __init__(self, buckets: tuple[float, ...]) -> None:
        self.buckets = buckets
        self.counts = [0] * (len(buckets) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value."""
        self.counts[bisect_left(self.buckets, value)] += times
        self.sum += value * times


class Metrics:
    """All counters of one server. Implements the engine client's `Observer`."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.ttft = Histogram(TTFT_BUCKETS)
        self.itl = Histogram(ITL_BUCKETS)
        self.tpot = Histogram(ITL_BUCKETS)
        self.e2e = Histogram(_SECONDS)
        self.queue = Histogram(_SECONDS)
        self.prefill = Histogram(_SECONDS)
        self.decode = Histogram(_SECONDS)
        self.prompt_tokens = Histogram(TOKEN_BUCKETS)
        self.generation_tokens = Histogram(TOKEN_BUCKETS)
        self.finished: Counter[str] = Counter()  # sequences by finish reason
        self.responses: Counter[tuple[str, int]] = Counter()  # HTTP answers by route and status
        self.engine_deaths = 0
        self.engine_up = False
        self.info: dict[str, Any] = {}
        self._counters: dict[str, float] = {}  # of the engine that runs
        self._buried: Counter[str] = Counter()  # of the engines that died, so that totals never fall
        self.gauges: dict[str, int] = {}
        self._records: dict[
            str, RequestRecord
        ] = {}  # by sequence, until the engine has told its last seconds

    def request(self, tenant: str, arrival_s: float) -> RequestRecord:
        """A record for one request that is about to enter the engine."""
        return RequestRecord(self, self.ledger.label(tenant), arrival_s)

    def counter(self, name: str) -> float:
        """A total of the engine, over all its processes since the server started."""
        return self._buried[name] + self._counters.get(name, 0.0)

    # -- Observer -----------------------------------------------------------------------------------------------------

    def on_stats(self, stats: Stats) -> None:
        """Newest counters and gauges of the engine."""
        self._counters, self.gauges = stats.counters, stats.gauges

    def on_engine_ready(self, info: dict[str, Any]) -> None:
        """A model is loaded."""
        self.info, self.engine_up = info, True

    def on_engine_death(self) -> None:
        """What the dead engine counted stays."""
        self.engine_up = False
        self.engine_deaths += 1
        self._buried.update(self._counters)
        self._counters, self.gauges = {}, {}
        self._records.clear()

    def on_usage(self, request_id: str, prefill_s: float, decode_s: float, left: bool) -> None:
        """Engine seconds that a sequence used since the last news of it; the last news when it has left."""
        record = self._records.pop(request_id, None) if left else self._records.get(request_id)
        if record is None:
            return
        account = self.ledger.accounts[record.tenant]
        account.prefill_s += prefill_s
        account.decode_s += decode_s


class RequestRecord:
    """Times and tokens of one request. Implements `generation.TokenClock`."""

    __slots__ = ("_account", "_metrics", "_tracked", "arrival_s", "tenant")

    def __init__(self, metrics: Metrics, tenant: str, arrival_s: float) -> None:
        self._metrics = metrics
        self._account: Account = metrics.ledger.accounts[tenant]
        self._account.requests += 1
        self.tenant, self.arrival_s = tenant, arrival_s

    def on_submit(self, request_id: str) -> None:
        """A sequence of this request enters the engine."""
        self._metrics._records[request_id] = self

    def on_reject(self, request_id: str) -> None:
        """The engine refused it."""
        self._metrics._records.pop(request_id, None)

    def on_prompt(self, tokens: int, cached: int) -> None:
        """A prompt was computed, but for its `cached` first tokens."""
        self._metrics.prompt_tokens.observe(tokens)
        self._account.prompt_tokens += tokens
        self._account.cached_tokens += cached

    def on_first_token(self, scheduled_s: float, at_s: float) -> None:
        """A sequence got its first token, in a step that ended at `at_s`."""
        metrics = self._metrics
        metrics.ttft.observe(at_s - self.arrival_s)
        metrics.queue.observe(max(scheduled_s - self.arrival_s, 0.0))
        metrics.prefill.observe(at_s - scheduled_s)

    def on_more_tokens(self, gap_s: float, tokens: int) -> None:
        """A sequence got more tokens: the first `gap_s` after the one before, the others at the same time as it."""
        itl = self._metrics.itl
        itl.observe(gap_s)
        if tokens > 1:
            itl.observe(0.0, tokens - 1)

    def on_output_tokens(self, tokens: int) -> None:
        """So many tokens belong to the answer (those behind a stop string do not)."""
        self._account.generation_tokens += tokens

    def on_finish(self, reason: str, tokens: int, first_token_s: float, last_token_s: float) -> None:
        """A sequence ended by itself."""
        metrics = self._metrics
        metrics.finished[reason] += 1
        metrics.generation_tokens.observe(tokens)
        metrics.e2e.observe(last_token_s - self.arrival_s)
        metrics.decode.observe(last_token_s - first_token_s)
        if tokens > 1:
            metrics.tpot.observe((last_token_s - first_token_s) / (tokens - 1))

    def on_abort(self, reason: str) -> None:
        """A sequence was given up: the client left, its deadline passed, the engine died."""
        self._metrics.finished[reason] += 1
