"""What must hold of the economics for any input: monotone, multiplicative, summing to the whole, never dividing by zero."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from inferoptim.economics import scenario
from inferoptim.economics.attribution import attribute, compound, cost_index
from inferoptim.economics.business import break_even, capacity_gain, paid_gpus
from inferoptim.economics.cost import Serving, cost_per_million, split_gpu_time, token_cost
from inferoptim.economics.currency import Rates
from inferoptim.economics.demand import provision
from inferoptim.economics.gpu_hour import OwnedNode, capital_recovery_factor, owned_gpu_hour
from inferoptim.economics.scenario_file import build, spreads
from inferoptim.economics.uncertainty import Range, monte_carlo

drawn = settings(deadline=None, max_examples=60)  # no deadline: the machine may be busy
money = st.floats(1e-3, 1e4)
speeds = st.floats(0.1, 1e6)
shares = st.floats(0.01, 1.0)


@drawn
@given(price=money, speed=speeds, faster=st.floats(1.001, 100), use=shares)
def test_cost_falls_with_throughput_and_with_utilisation(price, speed, faster, use):
    cost = cost_per_million(price, speed, use)
    assert cost_per_million(price, speed * faster, use) < cost
    assert cost_per_million(price, speed, use * 0.99) > cost


@drawn
@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=9))
def test_index_multiplies_along_a_ladder(costs):
    rungs = cost_index([(str(i), cost) for i, cost in enumerate(costs)])
    assert rungs[0].index == pytest.approx(100.0)
    assert rungs[-1].index == pytest.approx(100 * math.prod(rung.step for rung in rungs))
    assert rungs[-1].index == pytest.approx(100 * (1 - rungs[-1].total_cut))
    assert sum(rung.points for rung in rungs) == pytest.approx(
        100 - rungs[-1].index, abs=1e-6 * max(r.index for r in rungs)
    )


@drawn
@given(st.lists(st.floats(0, 0.99), min_size=1, max_size=6))
def test_cuts_compound_below_their_sum_whatever_the_order(cuts):
    total = compound(cuts)
    assert max(cuts) - 1e-12 <= total <= min(sum(cuts), 1.0) + 1e-12
    assert compound(list(reversed(cuts))) == pytest.approx(total)


@drawn
@given(st.integers(1, 5).flatmap(lambda n: st.lists(st.floats(1, 100), min_size=2**n, max_size=2**n)))
def test_shapley_sums_to_the_total_and_agrees_with_every_order(values):
    levers = "abcde"[: int(math.log2(len(values)))]
    sets = [frozenset(c) for size in range(len(levers) + 1) for c in itertools.combinations(levers, size)]
    costs = dict(zip(sets, values, strict=True))
    shapley = next(a for a in attribute(costs) if a.method == "Shapley")
    assert shapley.points is not None
    whole = 100 * (1 - costs[sets[-1]] / costs[frozenset()])
    assert sum(shapley.points.values()) == pytest.approx(whole, abs=1e-6 * max(abs(v) for v in values) * 100)
    # The definition, written out: the mean over every order of what a lever takes off when its turn comes.
    first, gains = levers[0], []
    for order in itertools.permutations(levers):
        before = frozenset(order[: order.index(first)])
        gains.append(100 * (costs[before] - costs[before | {first}]) / costs[frozenset()])
    assert shapley.points[first] == pytest.approx(sum(gains) / len(gains), abs=1e-6)


@drawn
@given(amount=st.floats(-1e9, 1e9), rate=st.floats(1e-4, 1e4))
def test_currency_there_and_back(amount, rate):
    rates = Rates({("EUR", "USD"): rate})
    there = rates.convert(amount, "EUR", "USD")
    assert rates.convert(there, "USD", "EUR") == pytest.approx(amount, rel=1e-12, abs=1e-12)
    assert rates.convert(amount, "EUR", "EUR") == amount


@drawn
@given(st.data())
def test_a_scenario_never_divides_by_zero(data):
    """Every input anywhere within its bounds, the ends included: each figure is a number or undefined, never infinite."""
    values = {}
    for item in scenario.INPUTS:
        low = (
            math.nextafter(item.low, math.inf)
            if item.strict and item.low != 0
            else (1e-9 if item.strict else item.low)
        )
        ends = st.sampled_from([low, item.high])
        value = data.draw(ends | st.floats(low, item.high), item.name)
        values[item.name] = (
            float(max(round(value), 1 if item.strict or item.low == 1 else 0))
            if item.name in scenario.WHOLE
            else value
        )
    values["horizon_months"] = min(values["horizon_months"], 36.0)
    values["growth_per_year"] = min(values["growth_per_year"], 5.0)
    figures = scenario.compute(scenario.complete(values))
    assert set(figures) == set(scenario.OUTPUTS)
    for name, value in figures.items():
        assert not math.isinf(value), name


@drawn
@given(
    price=money, speed=speeds, inputs=st.floats(1, 1e4), outputs=st.floats(1, 1e4), a=st.floats(0, 1e-2), b=st.floats(1e-6, 1e-1),
    hit=st.floats(0, 1), use=shares,
)  # fmt: skip
def test_input_and_output_apart_always_make_the_bill(price, speed, inputs, outputs, a, b, hit, use):
    from inferoptim.economics.cost import GpuTimeSplit

    cost = token_cost(
        Serving(
            price_per_hour=price, currency="EUR", output_tokens_per_s=speed, input_tokens_per_request=inputs,
            output_tokens_per_request=outputs, split=GpuTimeSplit(a, b, "drawn"), cache_hit=hit, utilisation=use,
        )
    )  # fmt: skip
    parts = inputs * cost.per_million_input_after_cache + outputs * cost.per_million_output_apart
    assert parts / 1e6 == pytest.approx(cost.per_request)
    assert cost.per_million_input_after_cache <= cost.per_million_input_apart * (1 + 1e-12)


@drawn
@given(
    a=st.floats(1e-6, 1e-2),
    b=st.floats(1e-5, 1e-1),
    shapes=st.lists(st.tuples(st.integers(1, 4000), st.integers(1, 4000)), min_size=2, max_size=5),
)
def test_a_split_finds_back_the_times_it_was_made_from(a, b, shapes):
    split = split_gpu_time([(i, o, a * i + b * o) for i, o in shapes])
    ratios = [i / (i + o) for i, o in shapes]
    if max(ratios) - min(ratios) < 0.2 * max(ratios):
        assert split is None  # shapes too alike: no figure rather than a wild one
    else:
        # What matters is the price of a request of each shape; each rate alone may be ill-conditioned.
        assert split is not None
        for i, o in shapes:
            assert split.request_s(i, o) == pytest.approx(a * i + b * o, rel=1e-6)


@drawn
@given(
    low=st.floats(0.2, 0.9),
    width=st.floats(0, 0.1),
    more=st.floats(0.01, 0.5),
    shape=st.sampled_from(["triangular", "uniform", "measured"]),
)
def test_intervals_widen_with_the_ranges_of_the_inputs(low, width, more, shape):
    def model(x):
        return {"cost": cost_per_million(3.0, 1000.0, x["utilisation"])}

    middle = low + width / 2 + more / 2
    spans = []
    for half in (0.0, width / 2 + 1e-6, width / 2 + more / 2):
        spread = monte_carlo(
            model, {"utilisation": Range(middle - half, middle, middle + half, shape)}, draws=2000
        )["cost"]
        spans.append(spread.high - spread.low)
        assert spread.low <= spread.value <= spread.high
    assert spans[0] == pytest.approx(0, abs=1e-9)
    assert spans[0] < spans[1] < spans[2]


def test_more_uncertain_inputs_widen_every_interval_of_a_scenario_and_a_seed_repeats_it():
    stated = {"requests_per_day": 5e6, "utilisation": 0.5, "migration_cost": 20_000.0}
    narrow = spreads(build({**stated, "factor": {"low": 0.55, "mode": 0.6, "high": 0.65}}))
    wide = spreads(build({**stated, "factor": {"low": 0.4, "mode": 0.6, "high": 0.8}}))
    for name in ("npv", "roi", "per_million_output_after", "cost_index", "saving_per_year_theoretical"):
        assert wide[name].high - wide[name].low > narrow[name].high - narrow[name].low > 0
    again = spreads(build({**stated, "factor": {"low": 0.4, "mode": 0.6, "high": 0.8}}))
    assert again["npv"] == wide["npv"]
    assert (
        spreads(build({**stated, "factor": {"low": 0.4, "mode": 0.6, "high": 0.8}}), seed=1)["npv"]
        != wide["npv"]
    )


def test_adding_an_input_leaves_the_draws_of_the_others_alone():
    base = {"factor": {"low": 0.5, "mode": 0.6, "high": 0.7}}
    alone = spreads(build(base))["cost_index"]
    beside = spreads(build({**base, "utilisation": {"low": 0.3, "mode": 0.5, "high": 0.7}}))["cost_index"]
    assert alone == beside


@drawn
@given(need=st.floats(1e-3, 1e4), node=st.integers(1, 16), held=st.integers(0, 64))
def test_paid_gpus_are_whole_nodes_that_carry_the_need(need, node, held):
    paid = paid_gpus(need, float(node), float(held))
    assert paid >= need * (1 - 1e-8)
    assert paid >= held
    assert paid == held or (paid / node == int(paid / node) and paid - node < need)


@drawn
@given(node=st.floats(1, 1e3), units=st.floats(1, 1e4), api=st.floats(1e-4, 10))
def test_past_the_last_break_even_own_gpus_stay_cheaper(node, units, api):
    meets = break_even(node, units, api)
    margin = api * units - node
    assume(abs(margin) > 1e-6 * node)
    if margin < 0:
        assert math.isnan(meets.first)
        return
    assert node == pytest.approx(api * meets.first)
    for volume in (meets.always * f for f in (1.001, 1.1, 1.5, 2.3, 7.7)):
        assert math.ceil(volume / units - 1e-9) * node <= api * volume * (1 + 1e-9)


@drawn
@given(cut=st.floats(0, 0.99))
def test_a_smaller_bill_and_more_work_are_one_gain_read_twice(cut):
    # The same money buys 1 + gain as much work at a unit cost of 1 - cut.
    assert (1 + capacity_gain(cut)) * (1 - cut) == pytest.approx(1.0)


@drawn
@given(
    st.lists(st.floats(0, 50), min_size=24, max_size=24).filter(any), st.floats(0.5, 20), st.floats(0, 0.5)
)
def test_a_day_serves_its_traffic_and_scaling_never_costs_more(hours, goodput, headroom):
    peak, hourly = provision(hours, goodput, headroom=headroom)
    assert hourly.gpu_hours <= peak.gpu_hours
    for rate, replicas in zip(hours, hourly.replicas, strict=True):
        assert replicas * goodput * (1 - headroom) >= rate * (1 - 1e-6)
    assert 0 < peak.utilisation <= hourly.utilisation <= 1


@drawn
@given(rate=st.floats(1e-6, 0.5), years=st.floats(0.5, 15), tiny=st.floats(0, 1e-9))
def test_capital_recovery_repays_the_loan(rate, years, tiny):
    factor = capital_recovery_factor(rate, years)
    worth = (1 - (1 + rate) ** -years) / rate  # present value of 1 a year
    assert factor * worth == pytest.approx(1.0, rel=1e-6)
    assert capital_recovery_factor(tiny, years) == pytest.approx(1 / years)


@drawn
@given(capex=st.floats(1e3, 1e6), up=st.floats(0.1, 1), power=st.floats(0, 1e4), staff=st.floats(0, 1e5))
def test_an_owned_hour_is_the_sum_of_its_terms_and_rises_as_availability_falls(capex, up, power, staff):
    def hour(availability):
        return owned_gpu_hour(
            OwnedNode(
                capex=capex, gpus=8, years=3, currency="EUR", power_w=power, kwh_price=0.2, staff_per_year=staff, availability=availability
            )
        )  # fmt: skip

    assert hour(up).total == pytest.approx(hour(1.0).total / up)
    assert hour(up).total == sum(term.per_gpu_hour for term in hour(up).terms)
