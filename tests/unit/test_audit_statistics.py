"""Estimates against synthetic traces of known parameters: each must lie inside its own interval; and a few exact sums."""

from __future__ import annotations

import numpy as np
import pytest

from inferoptim.audit.arrivals import Arrivals
from inferoptim.audit.blocks import BlockSums, correlation, proportion, ratio
from inferoptim.audit.in_flight import InFlight
from inferoptim.audit.languages import detect_language
from inferoptim.audit.lengths import LengthCounts
from inferoptim.audit.prefix import PrefixReuse
from inferoptim.audit.reservoir import Reservoir
from inferoptim.audit.sample import shared_segments, spread_gaps, spread_pairs
from inferoptim.audit.timeline import Timeline
from inferoptim.bench import corpus

SEEDS = range(3)


def covers(interval, truth):
    return interval is not None and interval.n > 1 and interval.low <= truth <= interval.high


def arrivals_of(gaps, pieces=7):
    arrivals = Arrivals()
    for part in np.array_split(np.cumsum(gaps), pieces):
        arrivals.add(part)
    return arrivals.describe(calendar=False, zone=None)


@pytest.mark.parametrize("seed", SEEDS)
def test_poisson_arrivals(seed):
    rng = np.random.default_rng(seed)
    found = arrivals_of(rng.exponential(0.2, 60_000))
    assert covers(found.rate_per_s, 5.0)
    assert covers(found.gap_cv, 1.0)
    assert covers(found.dispersion_1s, 1.0)
    assert covers(found.dispersion_60s, 1.0)


@pytest.mark.parametrize("cv", [0.5, 2.0])
def test_gamma_gaps_of_planted_variation(cv):
    rng = np.random.default_rng(int(cv * 10))
    shape = 1 / cv**2
    found = arrivals_of(rng.gamma(shape, 0.1 / shape, 80_000))
    assert covers(found.gap_cv, cv)
    assert covers(found.rate_per_s, 10.0)
    # a renewal process has dispersion cv² over long windows
    assert found.dispersion_60s.low <= cv**2 * 1.05
    assert found.dispersion_60s.high >= cv**2 * 0.95


def test_intervals_cover_about_as_often_as_they_say():
    """Rate of a Poisson process: 95 % intervals on 60 traces miss at most 9 of them (binomial, 1 in 1000)."""
    missed = 0
    for seed in range(60):
        gaps = np.random.default_rng(1000 + seed).exponential(1.0, 400)
        sums = BlockSums("gap")
        sums.add(gap=gaps)
        missed += not covers(sums.interval(ratio("n", "gap"), "rate"), 1.0)
    assert missed <= 9


def test_lengths_of_known_distribution():
    rng = np.random.default_rng(3)
    p = np.round(rng.lognormal(6, 1, 50_000)).astype(np.int64)
    o = np.round(rng.lognormal(4, 0.5, 50_000)).astype(np.int64)
    counts = LengthCounts()
    counts.add(p)
    found = counts.describe(None)
    for name, z in (("p50", 0.0), ("p90", 1.2815516), ("p99", 2.3263479)):
        truth = np.exp(6 + z)
        interval = getattr(found, name)
        assert interval.low - 1 <= truth <= interval.high + 1  # lengths are whole
        assert interval.value == np.quantile(p, float(name[1:]) / 100, method="inverted_cdf")
    sums = BlockSums("p", "o", "pp", "oo", "po")
    x, y = p.astype(float), o.astype(float)
    sums.add(p=x, o=y, pp=x * x, oo=y * y, po=x * y)
    assert covers(sums.interval(correlation("p", "o", "pp", "oo", "po"), "c"), 0.0)
    assert covers(sums.interval(ratio("p", "o"), "r"), np.exp(6.5) / np.exp(4.125))
    assert sum(b.count for b in found.bins) == 50_000


def test_planted_correlation():
    rng = np.random.default_rng(4)
    x = rng.normal(100, 10, 40_000)
    y = 0.6 * (x - 100) / 10 + 0.8 * rng.normal(0, 1, 40_000)
    sums = BlockSums("p", "o", "pp", "oo", "po")
    sums.add(p=x, o=y, pp=x * x, oo=y * y, po=x * y)
    assert covers(sums.interval(correlation("p", "o", "pp", "oo", "po"), "c"), 0.6)


def test_expected_maximum_is_exact():
    counts = LengthCounts()
    counts.add(np.array([1, 2, 3]))
    pairs = [max(a, b) for a in (1, 2, 3) for b in (1, 2, 3)]
    assert counts.expected_maximum(2) == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize("seed", SEEDS)
def test_planted_prefix_reuse(seed):
    """A known share of requests begins with one of 5 shared prefixes of 8 blocks; the rest of each prompt is unique."""
    rng = np.random.default_rng(seed)
    n, blocks = 6000, 20
    shared = rng.random(n) < 0.35
    ids = np.arange(n * blocks).reshape(n, blocks) + 1000
    ids[shared, :8] = rng.integers(0, 5, (n, 1))[shared] * 8 + np.arange(8)
    reuse = PrefixReuse(16)
    reuse.add(list(ids), np.full(n, blocks * 16))
    found = reuse.describe()
    assert covers(found.reusable, 0.35 * 8 / blocks)
    assert found.curve[-1].hit_rate == pytest.approx(found.reusable.value)


def test_sampled_prefix_reuse_is_near_the_exact_one():
    rng = np.random.default_rng(9)
    n, length = 3000, 12
    topic = np.minimum(rng.zipf(1.4, n), 500)
    ids = [np.concatenate([[t], t * 1000 + np.arange(1, length)]) for t in topic.tolist()]
    exact, sampled = PrefixReuse(16), PrefixReuse(16, budget=6000)
    for reuse in (exact, sampled):
        for start in range(0, n, 500):
            reuse.add(
                [i.astype(np.int64) for i in ids[start : start + 500]],
                np.full(min(500, n - start), length * 16),
            )
    a, b = exact.describe(), sampled.describe()
    assert b.sampled_share < 1
    assert b.reusable.value == pytest.approx(a.reusable.value, abs=0.03)


def test_planted_language_mix():
    rng = np.random.default_rng(0)
    texts = {
        code: [s for p in corpus.paragraphs(code) for s in corpus.sentences(p)] for code in corpus.LANGUAGES
    }
    picked = ["fr" if rng.random() < 0.3 else "en" for _ in range(2000)]
    found = [detect_language(texts[code][rng.integers(len(texts[code]))]) for code in picked]
    assert covers(proportion(found.count("fr"), len(found)), 0.3)
    wrong = sum(a != b for a, b in zip(picked, found, strict=True))
    assert wrong / len(found) < 0.02


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Wie kann ich mein Passwort zurücksetzen und was ist mit der Rechnung?", "de"),
        ("¿Cómo puedo cambiar la dirección de mi pedido?", "es"),
        ("Qual è la capitale della Francia e perché non è Lione?", "it"),
        ("Preciso de ajuda com o meu pedido, você pode verificar?", "pt"),
        ("Hoe kan ik mijn wachtwoord wijzigen en waarom werkt het niet?", "nl"),
        ("請問這個產品什麼時候可以到貨？", "zh"),
        ("これは何ですか？教えてください。", "ja"),
        ("이 제품은 언제 도착합니까?", "ko"),
        ("Как изменить пароль?", "ru"),
        ("def f(x):\n    return x + 1\n\nfor i in range(3):\n    print(f(i));\nimport os\n", "code"),
        ("12345 67890", "other"),
        ("", "other"),
    ],
)
def test_languages(text, code):
    assert detect_language(text) == code


def test_concurrency_of_a_known_queue():
    """M/D/∞: Poisson arrivals at 4/s that stay 3 s each: 12 in flight, Poisson distributed."""
    rng = np.random.default_rng(5)
    arrival = np.cumsum(rng.exponential(0.25, 20_000))
    flight, arrivals = InFlight(), Arrivals()
    flight.add(arrival, np.full(20_000, 3.0), np.full(20_000, 10), np.full(20_000, 5))
    arrivals.add(arrival)
    found = flight.describe(arrivals.describe(calendar=False, zone=None).rate_per_s)
    assert covers(found.little, 12.0)
    assert found.observed_mean == pytest.approx(12, rel=0.05)
    assert found.observed_p50 == 12
    assert found.kv_tokens_mean == pytest.approx(15 * found.observed_mean, rel=1e-9)


def test_stated_durations_are_labelled():
    flight = InFlight({"ttft_s": 0.5, "tpot_s": 0.1})
    arrival = np.arange(100.0)
    flight.add(arrival, None, np.full(100, 10), np.full(100, 6))
    arrivals = Arrivals()
    arrivals.add(arrival)
    found = flight.describe(arrivals.describe(calendar=False, zone=None).rate_per_s)
    assert found.basis == "stated"
    assert found.mean_duration_s == pytest.approx(1.0)


def test_unsorted_times_give_the_sorted_gaps_within_the_window():
    rng = np.random.default_rng(1)
    times = np.cumsum(rng.exponential(1, 5000))
    jumbled = times + 0.0
    for start in range(0, 5000, 50):
        rng.shuffle(jumbled[start : start + 50])
    sorted_, mixed = Arrivals(window_rows=1000), Arrivals(window_rows=1000)
    for part in np.array_split(times, 9):
        sorted_.add(part)
    for part in np.array_split(jumbled, 9):
        mixed.add(part)
    a, b = sorted_.describe(calendar=False, zone=None), mixed.describe(calendar=False, zone=None)
    assert b.late == 0
    assert b.rate_per_s == a.rate_per_s
    assert b.gap_cv == a.gap_cv


def test_rows_too_late_to_be_sorted_are_counted():
    arrivals = Arrivals(window_rows=100)
    for part in np.array_split(np.concatenate([np.arange(1000.0), [3.5]]), 30):
        arrivals.add(part)
    found = arrivals.describe(calendar=False, zone=None)
    assert found.late == 1
    assert found.rate_per_s.value == pytest.approx(1.0)


def test_timeline_widens_instead_of_growing():
    wide, narrow = Timeline(1, max_steps=100), Timeline(1)
    times = np.random.default_rng(0).uniform(-300, 5000, 2000)
    for part in np.array_split(times, 5):
        wide.add(0, part)
        narrow.add(0, part)
    assert (wide.step_s, narrow.step_s) == (60, 1)
    assert wide.column(0, -300, 5000).sum() == narrow.column(0, -300, 5000).sum() == 2000
    steps = np.floor(times / 60).astype(int)
    expected = np.bincount(steps - steps.min())
    assert wide.column(0, times.min(), times.max()).tolist() == expected.tolist()


def test_diurnal_profile_in_local_time():
    arrivals = Arrivals()
    start = 1_709_251_200  # 2024-03-01 00:00 UTC
    hours = np.arange(72)
    arrivals.add(
        np.concatenate([start + 3600 * h + np.linspace(0, 3599, 10 + 50 * (h % 24 == 8)) for h in hours])
    )
    found = arrivals.describe(calendar=True, zone="Europe/Paris")  # UTC+1 in March
    assert int(np.argmax(found.diurnal_per_s)) == 9
    assert found.diurnal_per_s[9] == pytest.approx(60 / 3600)


def test_block_sums_do_not_depend_on_how_rows_arrive():
    rng = np.random.default_rng(2)
    values = rng.random(10_000)
    whole = BlockSums("x")
    whole.add(x=values)
    pieces = BlockSums("x")
    for part in np.array_split(values, 77):
        pieces.add(x=part)
    assert pieces.total("x") == pytest.approx(whole.total("x"))
    assert pieces.total("n") == 10_000
    assert len(pieces._all) <= 513


def test_reservoir_is_uniform_and_repeatable():
    counts = np.zeros(10)
    for seed in range(200):
        sample = Reservoir(50, seed)
        for start in range(0, 1000, 100):
            sample.add(np.arange(start, start + 100))
        rows = sample.rows
        assert len(rows) == 50
        counts += np.bincount(rows // 100, minlength=10)
    assert abs(counts / counts.sum() - 0.1).max() < 0.012


def test_shared_segments_split_where_prompts_part():
    blocks = [np.array([1, 2, 3, 4]), np.array([1, 2, 5]), np.array([1, 2, 3, 9]), np.array([7])]
    lists, tokens = shared_segments(blocks, [40, 30, 45, 5], 10)
    assert lists == [(0, 1), (0,), (0, 1), ()]
    assert tokens == (20, 10)


def test_spread_samples_keep_the_distribution():
    rng = np.random.default_rng(0)
    gaps = rng.lognormal(0, 2, 5000)
    assert spread_gaps(gaps, 200).mean() == pytest.approx(gaps.mean())
    pairs = np.round(rng.lognormal(5, 1, (5000, 2))).astype(np.int64)
    picked = spread_pairs(pairs, 256, rng)
    rows = {tuple(row) for row in pairs.tolist()}
    assert all(tuple(row) in rows for row in picked.tolist())
    for column in (0, 1):
        quantiles = np.quantile(pairs[:, column], [0.1, 0.5, 0.9])
        shares = [(picked[:, column] <= q).mean() for q in quantiles]
        assert shares == pytest.approx([0.1, 0.5, 0.9], abs=0.03)
