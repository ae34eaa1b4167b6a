"""Statistics against hand calculation and against their own promise (coverage)."""

from __future__ import annotations

import math

import numpy as np
import pytest

from inferoptim.records import statistics as st
from inferoptim.records.schema import Interval, RequestRecord


def request(**fields: object) -> RequestRecord:
    base: dict[str, object] = {
        "config_id": "c", "workload": "w", "run_index": 0, "request_id": "r", "arrival_s": 1.0, "sent_s": 1.0,
        "first_token_s": 1.5, "finished_s": 3.5, "prompt_tokens": 4, "output_tokens": 5,
    }  # fmt: skip
    return RequestRecord.model_validate({**base, **fields})


def test_request_times_follow_the_definitions() -> None:
    r = request(token_times_s=(1.5, 2.0, 2.0, 3.0, 3.5))
    assert st.ttft_s(r) == 0.5
    assert st.e2e_s(r) == 2.5
    assert st.tpot_s(r) == pytest.approx((2.5 - 0.5) / 4)  # four gaps, not five tokens
    assert st.itl_s(r) == [0.5, 0.0, 1.0, 0.5]


def test_no_stream_means_not_measured() -> None:
    r = request(first_token_s=None)
    assert (st.ttft_s(r), st.tpot_s(r), st.itl_s(r)) == (None, None, [])
    assert st.e2e_s(r) == 2.5
    assert st.tpot_s(request(output_tokens=1)) is None


def test_rate_is_total_over_total_not_mean_of_rates() -> None:
    interval = st.rate_interval([100, 100], [1.0, 4.0], key="k")
    assert interval.value == pytest.approx(200 / 5)
    assert interval.low < 25 < 100 < interval.high  # two runs: wider than the range of what was seen
    assert interval.n == 2


def test_one_run_states_no_interval() -> None:
    interval = st.rate_interval([100], [2.0], key="k")
    assert (interval.low, interval.value, interval.high, interval.n) == (50, 50, 50, 1)
    assert not st.separated(Interval(value=2.0, low=2.0, high=2.0, n=1))


def test_seeded_and_named_streams_are_reproducible() -> None:
    rng = np.random.default_rng(0)
    times = list(rng.normal(2.0, 0.1, 20))
    first = st.rate_interval([1.0] * 20, times, key="a", seed=3)
    assert first == st.rate_interval([1.0] * 20, times, key="a", seed=3)
    assert first != st.rate_interval([1.0] * 20, times, key="a", seed=4)


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_intervals_cover_what_they_claim_even_for_few_runs(n: int) -> None:
    rng = np.random.default_rng(1)
    hits = 0
    trials = 200
    for trial in range(trials):
        times = rng.lognormal(0.0, 0.05, n)
        interval = st.rate_interval([1.0] * n, times, key=str(trial), seed=trial)
        hits += interval.low <= 1 / math.exp(0.05**2 / 2) <= interval.high
    assert hits / trials > 0.90  # a plain percentile bootstrap covers 0.5 at n = 2 and 0.75 at n = 3


def test_small_sample_factor_falls_to_one() -> None:
    assert st.small_sample_factor(2) == pytest.approx(12.706 / 1.95996 * math.sqrt(2), rel=1e-3)
    assert st.small_sample_factor(50) == pytest.approx(1.036, abs=0.01)
    with pytest.raises(ValueError, match="two"):
        st.small_sample_factor(1)


def test_ratio_and_separation() -> None:
    fast, slow = ([1.0] * 5, [1.0, 1.01, 0.99, 1.0, 1.02]), ([1.0] * 5, [2.0, 2.02, 1.98, 2.0, 2.01])
    ratio = st.ratio_interval(fast, slow, key="k")
    assert ratio.value == pytest.approx(2.0, rel=0.01)
    assert st.separated(ratio)
    assert not st.separated(st.ratio_interval(fast, fast, key="k"))
    # Two runs that happen to agree closely must not be ranked on a 1 % gap.
    assert not st.separated(st.ratio_interval(([1, 1], [1.0, 1.004]), ([1, 1], [1.01, 1.014]), key="k"))


@pytest.mark.parametrize(
    ("n", "names"), [(58, {"p50"}), (59, {"p50", "p95"}), (298, {"p50", "p95"}), (299, {"p50", "p95", "p99"})]
)
def test_tail_percentiles_only_where_n_allows(n: int, names: set[str]) -> None:
    values = np.random.default_rng(0).exponential(1.0, n)
    assert set(st.percentile_intervals([values[: n // 2], values[n // 2 :]], key="k")) == names


def test_the_n_rule_is_order_statistics() -> None:
    for name, n in (("p95", 59), ("p99", 299)):
        q = st.PERCENTILES[name]
        assert 1 - q**n >= 0.95 > 1 - q ** (n - 1)


def test_percentile_values_match_numpy_and_resample_by_run() -> None:
    rng = np.random.default_rng(2)
    runs = [rng.normal(loc, 0.01, 100) for loc in (1.0, 1.1, 1.2, 1.3)]
    result = st.percentile_intervals(runs, key="k")
    pooled = np.concatenate(runs)
    assert result["p50"].value == np.quantile(pooled, 0.5, method="inverted_cdf")
    assert result["p50"].n == 4
    # The spread is between runs. Resampling requests would give ± 0.02; by run it must span the runs' own medians.
    assert result["p50"].low < 1.1
    assert result["p50"].high > 1.2


def test_large_pools_stay_within_the_grid_error() -> None:
    rng = np.random.default_rng(3)
    runs = [rng.exponential(1.0, 20_000) for _ in range(3)]
    result = st.percentile_intervals(runs, key="k")
    pooled = np.concatenate(runs)
    for name, q in st.PERCENTILES.items():
        exact = np.quantile(pooled, q)
        assert result[name].low < exact < result[name].high
        assert result[name].value == pytest.approx(exact, rel=1e-3)


def test_no_observation_is_no_percentile() -> None:
    assert st.percentile_intervals([[], []], key="k") == {}


def test_paired_interval_of_a_signed_mean() -> None:
    deltas = np.array([-0.1, 0.2, 0.05, -0.02, 0.01, 0.03])
    interval = st.paired_interval(lambda w: (w @ deltas) / w.sum(axis=1), len(deltas), key="k")
    assert interval.value == pytest.approx(deltas.mean())
    assert interval.low < 0 < interval.high
