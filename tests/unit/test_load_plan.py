"""What a load test decides before and after the network: arrivals, objectives, the search, the verdict on the client."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferoptim.bench.load.arrivals import Level, arrival_times, parse_levels, trace_times
from inferoptim.bench.load.client_health import LoopWatch, judge, percentiles
from inferoptim.bench.load.max_rate import find_max_rate, min_requests
from inferoptim.bench.load.objectives import met, parse_objectives
from inferoptim.bench.load.prompts import build_prompts, fixed_lengths
from inferoptim.errors import ConfigError
from inferoptim.records.load_schema import (
    ClientHealth,
    LoadRequestRecord,
    LoadStage,
    Objectives,
    SelfTest,
)
from inferoptim.records.workload_file import load_workload


@pytest.mark.parametrize("process", ["poisson", "gamma", "constant"])
def test_the_mean_rate_is_the_rate_asked_for(process):
    times = arrival_times(
        Level(50, 50), 400.0, np.random.default_rng(0), process, 2.0 if process == "gamma" else 1.0
    )
    assert len(times) == pytest.approx(20_000, rel=0.04)
    assert times[0] >= 0
    assert times[-1] < 400
    assert (np.diff(times) >= 0).all()


def test_burstiness_is_the_variation_of_the_gaps():
    gaps = np.diff(arrival_times(Level(50, 50), 400.0, np.random.default_rng(0), "gamma", 2.0))
    assert gaps.std() / gaps.mean() == pytest.approx(2.0, rel=0.1)


def test_a_ramp_sends_at_the_rate_of_each_moment():
    times = arrival_times(Level(10, 30), 600.0, np.random.default_rng(1))
    thirds = np.histogram(times, bins=3, range=(0, 600))[0] / 200.0
    assert thirds == pytest.approx([10 + 20 / 6, 20, 30 - 20 / 6], rel=0.08)


def test_constant_gaps_are_equal_and_start_at_once():
    assert arrival_times(Level(4, 4), 1.0, np.random.default_rng(0), "constant").tolist() == [
        0,
        0.25,
        0.5,
        0.75,
    ]


def test_a_trace_at_another_rate_keeps_its_rhythm():
    offsets = np.array([0.0, 1.0, 1.0, 5.0])
    times = trace_times(offsets, 4.0, 2.0)
    assert times[:5] == pytest.approx(
        [0, 0.15, 0.15, 0.75, 1.0]
    )  # gaps 1, 0, 4 of mean 5/3, then one mean gap
    assert times[4:8] - times[4] == pytest.approx(times[:4])
    assert len(trace_times(offsets, 50.0, 100.0)) == pytest.approx(5000, rel=0.01)


def test_levels_are_read_as_written():
    assert parse_levels("2, 4,1..10", "--rate") == (Level(2, 2), Level(4, 4), Level(1, 10))
    for wrong in ("0", "-1", "x", "", "1..", "nan", "inf", "1,,2"):
        with pytest.raises(ConfigError, match="--rate"):
            parse_levels(wrong, "--rate")
    with pytest.raises(ConfigError, match="whole"):
        parse_levels("1.5", "--concurrency", whole=True)


def _record(**fields) -> LoadRequestRecord:
    base = {
        "stage": "s", "request_id": "s-0", "arrival_s": 1.0, "started_s": 1.0, "sent_s": 1.0, "first_token_s": 1.4,
        "finished_s": 2.4, "token_times_s": (1.4, 1.5, 2.4), "output_tokens": 3,
    }  # fmt: skip
    return LoadRequestRecord(**{**base, **fields})


def test_an_objective_is_met_or_not_by_the_requests_own_times():
    record = _record()
    for text, expected in (
        ("ttft=400ms", True), ("ttft=399ms", False), ("tpot=0.5s", True), ("tpot=499ms", False),
        ("itl=0.9s", True), ("itl=899ms", False), ("e2e<=1.4s", True), ("e2e<1.39s", False),
    ):  # fmt: skip
        objectives = parse_objectives([text])
        bounds = {
            k: v + 1e-9 for k, v in objectives.model_dump(exclude_none=True).items() if k != "attainment"
        }
        assert met(record, Objectives(**bounds)) is expected, text
    assert met(record, Objectives()) is None
    assert met(_record(error="reset"), parse_objectives(["e2e=10s"])) is False
    # what could not be seen was not met
    assert met(_record(token_times_s=None), parse_objectives(["itl=9s"])) is False
    assert met(_record(first_token_s=None), parse_objectives(["ttft=9s"])) is False
    assert met(_record(output_tokens=1, finished_s=1.4), parse_objectives(["tpot=1ms"])) is True


@pytest.mark.parametrize("text", ["ttft", "ttft=500", "ttft=-1s", "p95=1s", "ttft=0ms", "ttft=1.2.3s"])
def test_an_objective_without_metric_bound_or_unit_is_refused(text):
    with pytest.raises(ConfigError, match="--slo"):
        parse_objectives([text])


def test_percentiles_only_where_n_allows():
    assert percentiles([]) == {}
    assert set(percentiles(range(58))) == {"p50"}
    assert percentiles(range(1, 60)) == {"p50": 30.0, "p95": 57.0}
    assert percentiles(range(1, 300))["p99"] == 297.0
    assert set(percentiles(range(298))) == {"p50", "p95"}


def _stage(attainment: float, *, valid: bool = True, name: str = "probe") -> LoadStage:
    return LoadStage(
        name=name, shape="", loop="open", requests=100, succeeded=100, wall_s=1.0, goodput_per_s=1.0,
        attainment=attainment, attainment_late=attainment,
        client=ClientHealth(cpu_share=0.1, allowed_lag_s=0.02, valid=valid),
    )  # fmt: skip


@given(capacity=st.floats(0.05, 5000), start=st.floats(0.1, 100))
def test_the_search_encloses_the_true_capacity_within_its_tolerance(capacity, start):
    tried = []

    async def probe(rate: float) -> LoadStage:
        tried.append(rate)
        return _stage(1.0 if rate <= capacity else 0.5)

    found = asyncio.run(find_max_rate(probe, parse_objectives(["ttft=1s"]), start, 0.1))
    if found.note:
        assert capacity < start / 256
        return
    assert found.highest_passed_per_s <= capacity < found.lowest_failed_per_s
    assert found.lowest_failed_per_s <= found.highest_passed_per_s * 1.1
    assert len(tried) == len(found.probes) == len(set(tried))


def test_the_search_stops_where_the_client_is_the_limit():
    async def probe(rate: float) -> LoadStage:
        return _stage(1.0, valid=rate < 8)

    found = asyncio.run(find_max_rate(probe, parse_objectives(["ttft=1s"]), 1.0))
    assert found.highest_passed_per_s == 4
    assert found.lowest_failed_per_s is None
    assert "client" in found.note


def test_an_attainment_needs_as_many_requests_as_its_percentile():
    assert min_requests(0.95) == 59
    assert min_requests(0.99) == 299


def test_the_verdict_names_every_reason():
    watch = LoopWatch()
    watch.late_s = [0.001] * 400
    test = SelfTest(
        requests_per_s=100, output_tokens_per_s=1000, tokens_per_request=10, concurrency=1, duration_s=1
    )
    fine = judge(
        [0.001] * 400, watch, allowed_lag_s=0.02, requests_per_s=10, tokens_per_s=100, self_test=test
    )
    assert fine.valid
    assert fine.ceiling_share == pytest.approx(0.1)
    late = judge(
        [0.001] * 390 + [0.05] * 10,
        watch,
        allowed_lag_s=0.02,
        requests_per_s=10,
        tokens_per_s=1,
        self_test=None,
    )
    assert not late.valid
    assert "sent requests late" in late.reasons[0]
    near = judge([], watch, allowed_lag_s=0.02, requests_per_s=1, tokens_per_s=900, self_test=test)
    assert not near.valid
    assert "90%" in near.reasons[0]


def test_prompts_share_what_the_workload_shares_and_nothing_else():
    workload = load_workload("rag")
    made = build_prompts(workload, 24, None)
    assert len({p.text for p in made.prompts}) == len(made.prompts)
    for prompt, request in zip(made.prompts, workload.requests, strict=False):
        assert prompt.max_tokens == request.output_tokens
        assert len(prompt.text.split()) == pytest.approx(request.prompt_tokens / 1.3, rel=0.05)
    first_segment = {r.segments[0] for r in workload.requests[:24] if r.segments}
    starts = {p.text[:60] for p, r in zip(made.prompts, workload.requests, strict=False) if r.segments}
    assert len(starts) == len(first_segment)
    assert any("estimated" in note for note in made.notes)


def test_more_requests_than_can_be_written_are_repeated_and_said():
    made = build_prompts(fixed_lengths(100_000, 8, 0), 9, None)
    assert len(made.prompts) == 5
    assert any("come again" in note for note in made.notes)
    assert math.isclose(len(made.prompts[0].text.split()), 100_000 / 1.3, rel_tol=0.01)
