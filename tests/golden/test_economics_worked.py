"""Examples worked by hand, in the comments, with round numbers."""

from __future__ import annotations

import math

import pytest

from inferoptim.economics import scenario
from inferoptim.economics.attribution import attribute
from inferoptim.economics.business import break_even, cash_flow
from inferoptim.economics.cost import Serving, cost_per_million, split_gpu_time, token_cost
from inferoptim.economics.demand import demand_cost_per_million, provision
from inferoptim.economics.gpu_hour import OwnedNode, Rental, capital_per_year, owned_gpu_hour, rented_gpu_hour
from inferoptim.economics.tco import compare_offers, total_cost


def test_owned_gpu_hour_straight_line_by_hand():
    # 262 800 over 3 years = 87 600 a year = 10 an hour = 1.25 per GPU. 8 kW × 1.25 × 0.10 = 1.00 an hour = 0.125.
    node = OwnedNode(capex=262_800, gpus=8, years=3, currency="EUR", power_w=8000, pue=1.25, kwh_price=0.10)
    price = owned_gpu_hour(node)
    assert {t.name: t.per_gpu_hour for t in price.terms} == pytest.approx(
        {"depreciation": 1.25, "power": 0.125}
    )
    assert price.total == pytest.approx(1.375)


def test_owned_gpu_hour_every_term_by_hand():
    # Per year: hosting 1 000 × 12, support 5 % of 100 000, staff 7 000, all over 8 760 h and one GPU; up half the time.
    node = OwnedNode(
        capex=100_000, gpus=1, years=4, currency="EUR", residual_share=0.2, hosting_per_month=1000,
        support_share=0.05, staff_per_year=7000, availability=0.5,
    )  # fmt: skip
    price = owned_gpu_hour(node)
    yearly = 20_000 + 12_000 + 5_000 + 7_000
    assert price.total == pytest.approx(yearly / 4380)
    assert price.terms[-1].name == "unavailable hours"
    assert price.terms[-1].per_gpu_hour == pytest.approx(yearly / 4380 - yearly / 8760)


def test_capital_recovery_against_a_written_out_loan():
    # 1 000 borrowed at 10 % for two years, 100 back at the end: payment A with 1000 = A/1.1 + A/1.21 + 100/1.21.
    annual = (1000 - 100 / 1.21) / (1 / 1.1 + 1 / 1.21)
    assert capital_per_year(1000, 100, 0.10, 2) == pytest.approx(annual)


def test_spot_rework_by_hand():
    # 12 interruptions a day, each wasting a quarter of an hour: every useful hour pays 1.125 h.
    price = rented_gpu_hour(
        Rental(2.0, "USD", "spot", interruptions_per_day=12, lost_hours_per_interruption=0.25)
    )
    assert price.total == pytest.approx(2.25)


def test_reserved_upfront_is_spread_over_its_term():
    assert rented_gpu_hour(
        Rental(1.0, "USD", "reserved", upfront=876, term_hours=8760)
    ).total == pytest.approx(1.1)


def test_cost_per_million_by_hand():
    # 3.6 an hour is 0.001 a second; 1 000 tok/s makes a million in 1 000 s: 1.00; half busy: 2.00.
    assert cost_per_million(3.6, 1000) == pytest.approx(1.0)
    assert cost_per_million(3.6, 1000, 0.5) == pytest.approx(2.0)


def test_input_and_output_apart_make_the_whole_bill():
    # a = 1 ms/prompt token, b = 10 ms/output token. 1 000 in + 100 out = 1 s + 1 s of GPU; hits of 50 % spare 0.5 s.
    split = split_gpu_time([(1000, 100, 2.0), (100, 1000, 10.1)])
    assert split is not None
    assert split.s_per_input_token == pytest.approx(1e-3)
    assert split.s_per_output_token == pytest.approx(1e-2)
    serving = Serving(
        price_per_hour=3600, currency="EUR", output_tokens_per_s=100 / 1.5, input_tokens_per_request=1000,
        output_tokens_per_request=100, split=split, cache_hit=0.5, energy_j_per_token=3.6, kwh_price=0.2,
        carbon_g_per_kwh=50,
    )  # fmt: skip
    cost = token_cost(serving)
    # 1 money a second: a request takes 1.5 s = 1.5; 1 000 prompt tokens cost 0.5, 100 output tokens 1.0.
    assert cost.per_request == pytest.approx(1.5)
    assert cost.per_million_input_apart == pytest.approx(1000.0)
    assert cost.per_million_input_after_cache == pytest.approx(500.0)
    assert cost.per_million_output_apart == pytest.approx(10_000.0)
    # 3.6 J a token = 3.6 MJ a million = 1 kWh.
    assert cost.energy_kwh_per_million_output == pytest.approx(1.0)
    assert cost.energy_cost_per_million_output == pytest.approx(0.2)
    assert cost.carbon_g_per_million_output == pytest.approx(50.0)


def test_a_service_level_costs_more_than_peak():
    # Peak 1 000 tok/s, but only 2 requests/s × 100 tokens = 200 tok/s within the objective: five times the price.
    peak = Serving(
        price_per_hour=3.6, currency="EUR", output_tokens_per_s=1000, output_tokens_per_request=100
    )
    held = Serving(
        price_per_hour=3.6, currency="EUR", output_tokens_per_s=1000, output_tokens_per_request=100,
        goodput_requests_per_s=2, slo="TTFT p95 ≤ 500 ms",
    )  # fmt: skip
    assert token_cost(held).per_million_output == pytest.approx(5 * token_cost(peak).per_million_output)
    assert any("no goodput" in c for c in token_cost(peak).caveats)
    assert "TTFT p95" in token_cost(held).at


def test_runs_of_one_shape_do_not_split():
    assert split_gpu_time([(1000, 100, 2.0), (2000, 200, 4.0)]) is None


def test_a_day_of_traffic_by_hand():
    # 10 req/s for 12 h, 1 req/s for 12 h; a replica of 2 GPUs serves 4 req/s: 3 replicas by day, 1 by night.
    peak, hourly = provision([10.0] * 12 + [1.0] * 12, goodput_per_replica=4.0, gpus_per_replica=2)
    assert (peak.gpu_hours, hourly.gpu_hours) == (3 * 24 * 2, (3 * 12 + 12) * 2)
    assert hourly.utilisation == pytest.approx((120 + 12) / (48 * 4))
    # 96 GPU-hours × 2 = 192 for 192 million tokens: 1 per million.
    assert demand_cost_per_million(hourly, 2.0, 192e6) == pytest.approx(1.0)


def test_cash_flow_with_nodes_commitment_and_ramp_by_hand():
    # 16 GPUs, halved, nodes of 8, 1 money an hour = 730 a month. 16 stay committed two months; the change serves
    # from month 2. Months 1, 2: nothing saved. Months 3, 4: 8 × 730 = 5 840 each.
    flow = cash_flow(
        gpus=16.0, factor=0.5, price=1.0, gpus_per_node=8.0, horizon_months=4, committed_gpus=16.0,
        commitment_months=2.0, ramp_months=1.0, migration_cost=10_000.0,
    )  # fmt: skip
    assert flow.cumulative == pytest.approx([-10_000, -10_000, -10_000, -4_160, 1_680])
    assert (flow.gain, flow.cost, flow.payback_months) == pytest.approx((11_680, 10_000, 4))
    assert flow.roi == pytest.approx(0.168)
    assert flow.theoretical == pytest.approx(3 * 8 * 730)


def test_whole_nodes_can_eat_the_whole_saving():
    # 5 GPUs needed, 3 after a 40 % cut: one node of 8 before and after.
    flow = cash_flow(
        gpus=5.0, factor=0.6, price=1.0, gpus_per_node=8.0, horizon_months=12, migration_cost=1.0
    )
    assert flow.gain == 0
    assert math.isnan(flow.payback_months)


def test_npv_by_hand():
    # One saving of 730 in month 12 would be 730 / 1.1; here 730 each month for 12 at 10 % a year.
    flow = cash_flow(gpus=2.0, factor=0.5, price=1.0, gpus_per_node=1.0, horizon_months=12, discount_rate=0.1)
    assert flow.npv == pytest.approx(sum(730 / 1.1 ** (m / 12) for m in range(1, 13)))


def test_break_even_by_hand_and_by_brute_force():
    # A node costs 100 a day, carries 150 units; the API asks 1 a unit: first at 100; with two nodes the API is cheaper
    # again between 150 and 200; 2 × 50 ≥ 100, so past 200 own GPUs stay cheaper.
    meets = break_even(100.0, 150.0, 1.0)
    assert (meets.first, meets.always) == (100.0, 200.0)

    def own(volume: float) -> float:
        return 100.0 * math.ceil(volume / 150.0)

    assert all(own(v) > v for v in range(1, 100))
    assert any(own(v) > v for v in range(151, 200))
    assert all(own(v) <= v for v in range(200, 3000))


def test_break_even_never_where_a_full_node_costs_more_than_the_api():
    meets = break_even(100.0, 99.0, 1.0)
    assert math.isnan(meets.first)
    assert math.isnan(meets.always)


def test_offers_of_different_node_sizes_are_compared_by_the_gpu():
    # 8 × 2 = 16 a node against one GPU at 3: +50 % a GPU, whatever a node is.
    eight, one = compare_offers([("eight", 2.0, 8), ("one", 3.0, 1)], hours=100)
    assert (eight.per_year, one.per_year, eight.gap, one.gap) == pytest.approx((1600, 300, 0, 0.5))


def test_total_cost_by_hand():
    # 9 GPUs in nodes of 8 = 16, then 18 -> 24; 1 money × 100 h; price falls 10 %: 1 600 + 2 160; plus 500 once.
    result = total_cost(
        price_per_gpu_hour=1.0, gpus=9, gpus_per_node=8, years=2, currency="EUR", hours_per_year=100,
        growth_per_year=1.0, price_change_per_year=-0.1, one_off=500, discount_rate=0.25,
    )  # fmt: skip
    assert result.total == pytest.approx(500 + 1600 + 2160)
    assert result.present_value == pytest.approx(500 + 1600 / 1.25 + 2160 / 1.5625)


def test_attribution_by_hand():
    # Costs: none 100, a 50, b 80, both 20. Shapley a = ((50) + (80 - 20)) / 2 = 55, b = (20 + 30) / 2 = 25.
    none, a, b = frozenset(), frozenset("a"), frozenset("b")
    alone, without, shapley = attribute({none: 100.0, a: 50.0, b: 80.0, a | b: 20.0})
    assert alone.points == pytest.approx({"a": 50, "b": 20})
    assert without.points == pytest.approx({"a": 60, "b": 30})
    assert shapley.points == pytest.approx({"a": 55, "b": 25})


def test_a_ladder_alone_says_what_cannot_be_attributed():
    none, a, ab, abc = frozenset(), frozenset("a"), frozenset("ab"), frozenset("abc")
    alone, without, shapley = attribute({none: 100.0, a: 60.0, ab: 40.0, abc: 30.0})
    assert (alone.points, without.points, shapley.points) == (None, None, None)
    assert set(alone.missing) == {frozenset("b"), frozenset("c")}
    assert set(without.missing) == {frozenset("bc"), frozenset("ac")}
    assert "b" in alone.explain()
    assert "not measured" in alone.explain()


def test_scenario_by_hand():
    # 864 000 requests a day = 10/s; each 500 in × 100 s/M + 200 out × 250 s/M = 0.1 GPU·s: 1 GPU busy, 2 at half load.
    x = scenario.complete({
        "requests_per_day": 864_000, "input_tokens": 500, "output_tokens": 200, "gpu_s_per_m_input": 100,
        "gpu_s_per_m_output": 250, "utilisation": 0.5, "factor": 0.5, "gpu_hour_price": 3.6, "power_w": 720,
        "carbon_g_per_kwh": 50, "api_input_price": 1.0, "api_output_price": 2.0,
    })  # fmt: skip
    y = scenario.compute(x)
    assert y["gpus_before"] == pytest.approx(2.0)
    assert y["paid_gpus_after"] == 1.0
    # 0.001 money a GPU-second × 0.1 s / 0.5 = 0.0002 a request of 200 tokens: 1.00 a million.
    assert y["per_million_output_before"] == pytest.approx(1.0)
    assert y["saving_per_year_theoretical"] == pytest.approx(3.6 * 8760)
    # 0.1 s of GPU, half busy, factor a half: 0.1 s × 720 W = 72 J for 200 tokens = 0.36 MJ a million = 0.1 kWh.
    assert y["kwh_per_million_output"] == pytest.approx(0.1)
    assert y["carbon_g_per_million_output"] == pytest.approx(5.0)
    # The API asks (500 × 1 + 200 × 2) / 1e6 = 0.0009 a request; one GPU costs 86.4 a day: 96 000 requests.
    assert y["break_even_requests_per_day"] == pytest.approx(96_000)
