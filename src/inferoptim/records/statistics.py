"""Statistics of a bench: what one may say from n runs. NumPy only, seeded, no torch.

Two runs of one process are not n × requests independent observations: the requests of a run share its weather. So
every interval here resamples *runs*, never requests. Percentile intervals of a bootstrap are too narrow when n is
small (with two runs they cover about half of what they claim), so the distance from the estimate to each end is
widened, in log space, by t(n-1) / z * sqrt(n / (n - 1)).
Source: T. Hesterberg, "What Teachers Should Know About the Bootstrap", The American Statistician 69 (2015), §4.2.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inferoptim.records.schema import Interval, RequestRecord

Array = NDArray[np.float64]
RESAMPLES = 10_000
CONFIDENCE = 0.95
GRID = 1024  # distinct values kept when a pooled distribution is larger; the quantile error is below 1 / GRID

# Fewest observations for which the largest of them bounds the percentile with 95 % confidence: 1 - p**n >= 0.95.
# Source: order statistics; n >= log(0.05) / log(p).
PERCENTILE_MIN_N = {"p50": 1, "p95": 59, "p99": 299}
PERCENTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}


def small_sample_factor(n: int, confidence: float = CONFIDENCE) -> float:
    """How much wider than a bootstrap percentile interval an honest interval on n observations is (1 as n grows)."""
    if n < 2:
        raise ValueError("an interval needs at least two observations")
    return _t_quantile(n - 1, confidence) / _t_quantile(10**9, confidence) * math.sqrt(n / (n - 1))


@lru_cache(maxsize=1024)
def _t_quantile(df: int, confidence: float) -> float:
    from scipy.special import stdtrit  # quicker to import than scipy.stats

    return float(stdtrit(df, 0.5 + confidence / 2))


def resample_weights(n: int, key: str, seed: int = 0, resamples: int = RESAMPLES) -> tuple[Array, Array]:
    """Draw bootstrap resamples of n runs as count vectors.

    Returns:
        (weights [U, n], multiplicity [U]): count vectors and how often each was drawn. Few runs have few distinct
        resamples (three have ten), and statistics are then evaluated on those alone.
    """
    rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
    counts = rng.multinomial(n, np.full(n, 1.0 / n), size=resamples)
    if n > 7:  # repeats are rare by then, and finding them costs more than it saves
        return counts.astype(np.float64), np.ones(resamples)
    unique, multiplicity = np.unique(counts, axis=0, return_counts=True)
    return unique.astype(np.float64), multiplicity.astype(np.float64)


def weighted_quantile(values: Array, weights: Array, q: float | Array) -> Array:
    """Quantiles of `values` [n] under `weights` [n]: the smallest value whose cumulative weight reaches q."""
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(weights[order])
    index = np.searchsorted(cumulative, np.asarray(q) * cumulative[-1] * (1 - 1e-12))
    return np.asarray(values[order][np.minimum(index, len(values) - 1)])


def _interval(value: float, draws: Array, multiplicity: Array, n: int, confidence: float) -> Interval:
    if n < 2:
        return Interval(value=value, low=value, high=value, confidence=confidence, n=n)
    tail = (1 - confidence) / 2
    low, high = (float(x) for x in weighted_quantile(draws, multiplicity, np.array([tail, 1 - tail])))
    factor = small_sample_factor(n, confidence)
    if value > 0 and low > 0:
        low = value * math.exp(-factor * max(0.0, math.log(value / low)))
        high = value * math.exp(factor * max(0.0, math.log(high / value)))
    else:  # a signed quantity: widen on the plain scale
        low, high = value - factor * max(0.0, value - low), value + factor * max(0.0, high - value)
    return Interval(value=value, low=low, high=high, confidence=confidence, n=n)


def rate_interval(
    amounts: Sequence[float],
    durations_s: Sequence[float],
    key: str,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Total amount over total time (tokens/s, J/token with the arguments swapped), resampled by run.

    Args:
        amounts: what each run produced.
        durations_s: what each run took, same order.
        key: names the resampling stream, so that a figure does not depend on the order of evaluation.

    Returns:
        The estimate and its interval. With a single run low = high = value and n = 1: no interval can be stated.
    """
    a, d = np.asarray(amounts, float), np.asarray(durations_s, float)
    if len(a) == 0 or len(a) != len(d):
        raise ValueError("rate_interval needs as many amounts as durations, and at least one")
    weights, multiplicity = resample_weights(len(a), key, seed)
    return _interval(
        float(a.sum() / d.sum()), (weights @ a) / (weights @ d), multiplicity, len(a), confidence
    )


def ratio_interval(
    numerator: tuple[Sequence[float], Sequence[float]],
    denominator: tuple[Sequence[float], Sequence[float]],
    key: str,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Ratio of two rates, each (amounts, durations) of its own runs, resampled independently.

    Independent resampling is conservative here: runs are interleaved, so that pairing them could only narrow it.
    """
    draws, totals = [], []
    for name, (amounts, durations) in (("numerator", numerator), ("denominator", denominator)):
        a, d = np.asarray(amounts, float), np.asarray(durations, float)
        rng = np.random.default_rng([seed, zlib.crc32(f"{key}/{name}".encode())])
        weights = rng.multinomial(len(a), np.full(len(a), 1.0 / len(a)), size=RESAMPLES)
        draws.append((weights @ a) / (weights @ d))
        totals.append(float(a.sum() / d.sum()))
    n = min(len(numerator[0]), len(denominator[0]))
    return _interval(totals[0] / totals[1], draws[0] / draws[1], np.ones(RESAMPLES), n, confidence)


def separated(ratio: Interval) -> bool:
    """True when the interval of a ratio excludes 1, so that its two sides may be ranked."""
    return ratio.n >= 2 and (ratio.low > 1.0 or ratio.high < 1.0)


def percentile_intervals(
    values_by_run: Sequence[Sequence[float]], key: str, seed: int = 0, confidence: float = CONFIDENCE
) -> dict[str, Interval]:
    """P50, P95, P99 of pooled observations, resampled by run.

    A tail percentile appears only where the pooled count allows it (`PERCENTILE_MIN_N`); nothing observed → {}.
    """
    runs = [np.asarray(run, float) for run in values_by_run if len(run)]
    if not runs:
        return {}
    pooled = np.sort(np.concatenate(runs))
    wanted = {name: q for name, q in PERCENTILES.items() if len(pooled) >= PERCENTILE_MIN_N[name]}
    grid = np.unique(pooled)
    if len(grid) > GRID:
        grid = np.unique(np.quantile(pooled, np.linspace(0, 1, GRID), method="inverted_cdf"))
    # histogram[r, g]: observations of run r in (grid[g-1], grid[g]]
    histogram = np.stack(
        [np.bincount(np.searchsorted(grid, run), minlength=len(grid)) for run in runs]
    ).astype(float)
    weights, multiplicity = resample_weights(len(runs), key, seed)
    draws: dict[str, list[Array]] = {name: [] for name in wanted}
    for start in range(0, len(weights), 1000):
        cumulative = np.cumsum(weights[start : start + 1000] @ histogram, axis=1)
        for name, q in wanted.items():
            reached = cumulative >= q * cumulative[:, -1:] * (1 - 1e-12)
            draws[name].append(grid[np.argmax(reached, axis=1)])
    return {
        name: _interval(
            float(weighted_quantile(pooled, np.ones(len(pooled)), q)),
            np.concatenate(draws[name]),
            multiplicity,
            len(runs),
            confidence,
        )
        for name, q in wanted.items()
    }


def paired_interval(
    statistic: Callable[[Array], Any],
    n: int,
    key: str,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Bootstrap over n paired units (chunks of text seen by both configurations).

    Args:
        statistic: maps weights [U, n] to [U] values; evaluated on all-ones for the estimate itself.
        n: units.
    """
    value = float(np.asarray(statistic(np.ones((1, n))))[0])
    weights, multiplicity = resample_weights(n, key, seed, resamples)
    return _interval(value, np.asarray(statistic(weights), float), multiplicity, n, confidence)


# --- per-request times; definitions in DESIGN §2 -------------------------------------------------------------


def ttft_s(request: RequestRecord) -> float | None:
    """First token − arrival; None where the target does not stream."""
    return None if request.first_token_s is None else request.first_token_s - request.arrival_s


def e2e_s(request: RequestRecord) -> float:
    """Last token (or whole answer) − arrival."""
    return request.finished_s - request.arrival_s


def tpot_s(request: RequestRecord) -> float | None:
    """(E2E − TTFT) / (output tokens − 1): the first token is prefill's, not counted; None for a single token."""
    first = ttft_s(request)
    if first is None or request.output_tokens < 2:
        return None
    return (e2e_s(request) - first) / (request.output_tokens - 1)


def itl_s(request: RequestRecord) -> list[float]:
    """Each gap between two consecutive tokens of one request; [] where token times are unknown.

    Tokens that arrive together (accepted proposals) have gaps of 0: that is what the client saw.
    """
    times = request.token_times_s
    return [] if times is None else [b - a for a, b in pairwise(times)]
