"""Claims about money: sections 1 and 6."""

from __future__ import annotations

from inferoptim.economics.attribution import compound, cost_index
from inferoptim.economics.business import capacity_gain, return_on_investment, unit_cut_for
from inferoptim.economics.claims.model import Evidence, Finding, Verdict, claim
from inferoptim.economics.gpu_hour import HOURS_PER_YEAR
from inferoptim.economics.prices import Offer, load_catalogue
from inferoptim.economics.tco import compare_offers, implied_capex, lifetime

HOLDS, CONDITIONS, WRONG = Verdict.HOLDS, Verdict.CONDITIONS, Verdict.WRONG


def _offer(name: str) -> Offer:
    return load_catalogue().find(name)


def _on_prem_year() -> float:
    return _offer("guide-on-prem-h100").per_node_year


@claim(1, "1.1", "Inference is 80–90 % of a model's lifetime cost", "P")
def lifetime_share(_: Evidence) -> Finding:
    """80–90 % needs inference of 4 to 9 times training; a lab that spent 29 % of compute on it is far from there."""
    deployer = lifetime(training_cost=1.0, inference_per_month=9 / 36, months=36).inference_share
    return Finding(
        CONDITIONS,
        f"Holds for a deployer whose inference costs 4–9 times its training (9× → {deployer:.0%}), not for a lab: one "
        "public estimate for OpenAI 2024 is about 29 % of compute",
        figures={
            "share_at_9x": deployer,
            "ratio_for_80_percent": 0.8 / 0.2,
            "ratio_for_90_percent": 0.9 / 0.1,
        },
    )


@claim(2, "1.1", "OpenAI: 7 G$ in 2025", "P")
def openai_spend(_: Evidence) -> Finding:
    """A question of date, not of arithmetic: the year attached to the circulating figure."""
    claimed, circulated = 2025, 2024
    verdict = HOLDS if claimed == circulated else WRONG
    return Finding(
        verdict, f"The 7 G$ figure circulated as an estimate for {circulated}", figures={"year": circulated}
    )


@claim(3, "1.2", "On-prem 1.8 $/GPU·h → 14.4 $/node", "P")
def on_prem_node(_: Evidence) -> Finding:
    """8 × 1.8."""
    node = _offer("guide-on-prem-h100").per_node_hour
    return Finding(
        HOLDS if f"{node:.1f}" == "14.4" else WRONG, f"Right: 8 × 1.8 = {node:.1f}", figures={"node": node}
    )


@claim(4, "1.2", "→ ≈ 127 k$ a year", "P")
def on_prem_year(_: Evidence) -> Finding:
    """14.4 × 8760 hours."""
    year = _on_prem_year()
    verdict = HOLDS if round(year / 1e3) == 127 else WRONG
    return Finding(
        verdict,
        f"14.4 × 8760 = {year / 1e3:.1f} k$ ({127e3 / year - 1:+.1%} in the guide)",
        figures={"year": year},
    )


@claim(5, "1.2", "3-year amortisation + OPEX ≈ 15 %", "P")
def on_prem_capex(_: Evidence) -> Finding:
    """The purchase price that the all-in figure hides."""
    year = _on_prem_year()
    of_capex, of_total = implied_capex(year, 3, 0.15), implied_capex(year, 3, 0.15, of_total=True)
    return Finding(
        CONDITIONS,
        f"Implies capex {of_capex / 1e3:.0f} k$ (15 % of capex a year) or {of_total / 1e3:.0f} k$ (15 % of total); assumes "
        "100 % use; leaves out cost of capital, staff, spares",
        figures={"of_capex": of_capex, "of_total": of_total},
    )


@claim(6, "1.2", "AWS p5.48xlarge on demand: 3.93 $/GPU·h, 31.46 $/h", "P")
def aws_on_demand(_: Evidence) -> Finding:
    """The catalogue's on-demand offer against the figure printed."""
    offer, printed = _offer("aws-p5-on-demand"), _offer("aws-p5-capacity-block")
    verdict = HOLDS if abs(offer.per_node_hour / 31.46 - 1) < 0.005 else WRONG
    return Finding(
        verdict,
        f"The on-demand list price is {offer.per_node_hour:.2f} $/h ({offer.per_gpu_hour:.2f} $/GPU·h, seen {offer.seen}); "
        f"{printed.per_node_hour:.2f} $/h matches the Capacity Blocks rate",
        figures={"on_demand": offer.per_node_hour, "capacity_block": printed.per_node_hour},
    )


@claim(7, "1.2", "276 k$ a year", "P")
def aws_year(_: Evidence) -> Finding:
    """Both rates over 8 760 hours."""
    block, demand = _offer("aws-p5-capacity-block").per_node_year, _offer("aws-p5-on-demand").per_node_year
    return Finding(
        CONDITIONS if round(block / 1e3) == 276 else WRONG,
        f"Arithmetic right for 31.46 ({block / 1e3:.0f} k$); true on-demand is {demand / 1e3:.0f} k$",
        figures={"capacity_block": block, "on_demand": demand},
    )


@claim(8, "1.2", "+117 % against on-prem", "P")
def aws_gap(_: Evidence) -> Finding:
    """Gaps from exact and from rounded figures."""
    names = ("guide-on-prem-h100", "aws-p5-capacity-block", "aws-p5-on-demand")
    rows = compare_offers([(name, _offer(name).per_gpu_hour, 8) for name in names])
    rounded = 276 / 127 - 1
    return Finding(
        CONDITIONS if round(rounded * 100) == 117 else WRONG,
        f"Right on rounded figures for 31.46 ({rounded:+.0%}; exactly {rows[1].gap:+.1%}); {rows[2].gap:+.0%} for true on-demand",
        figures={"rounded": rounded, "capacity_block": rows[1].gap, "on_demand": rows[2].gap},
    )


@claim(9, "1.2", "Vast.ai 1.87 → 15.0 → 131 k$", "P")
def vast(_: Evidence) -> Finding:
    """8 × 1.87, × 8 760."""
    offer = _offer("vast-h100-average")
    right = f"{offer.per_node_hour:.1f} {offer.per_node_year / 1e3:.0f}" == "15.0 131"
    return Finding(
        HOLDS if right else WRONG,
        f"Right: {offer.per_node_hour:.2f} $/h, {offer.per_node_year / 1e3:.1f} k$",
        figures={"node": offer.per_node_hour, "year": offer.per_node_year},
    )


@claim(10, "1.2", "+3 %", "P")
def vast_gap(_: Evidence) -> Finding:
    """The gap on the guide's rounded years, and an hour."""
    hour, rounded = _offer("vast-h100-average").per_gpu_hour / 1.8 - 1, 131 / 127 - 1
    return Finding(
        CONDITIONS,
        f"{rounded:+.1%} on the guide's rounded years, {hour:+.1%} an hour",
        figures={"hour": hour, "year": rounded},
    )


@claim(11, "1.3", "−30…−70 %, then −10…−25 %, then −15 %", "P")
def savings_compound(_: Evidence) -> Finding:
    """Low: 30 and 10 %, no rightsizing ('up to' 15 %); high: 70, 25 and 15 %."""
    low, high = compound([0.30, 0.10]), compound([0.70, 0.25, 0.15])
    return Finding(
        CONDITIONS,
        f"Savings compound (multiply), never add: −{low:.0%} to −{high:.0%} together; added they would pass "
        f"{0.70 + 0.25 + 0.15:.0%}",
        figures={"low": low, "high": high},
    )


@claim(12, "1.3", "Capacity doubled, P95 −40 %", "G")
def capacity_doubled(evidence: Evidence) -> Finding:
    """Needs a load test; here only the guide against itself."""
    return Finding(
        Verdict.NOT_MEASURED,
        "No source; +100 % capacity disagrees with +50 % in 6.3 and 9.1",
        evidence.speedups(),
        figures={"claimed_here": 1.0, "claimed_in_6_3": 0.5},
    )


@claim(13, "1.3", "ROI under 6 months", "P")
def roi_under_six_months(_: Evidence) -> Finding:
    """The guide's own plan (section 8) in months, 4.345 weeks each."""
    weeks_per_month = 365 / 12 / 7
    production, end = 20 / weeks_per_month, 32 / weeks_per_month
    verdict = HOLDS if end < 6 else WRONG
    return Finding(
        verdict,
        f"Disagrees with §8: production ends in week 20 (month {production:.1f}), the plan in week 32 (month {end:.1f}), "
        "and there is no cost side: see inferoptim roi",
        figures={"production_month": production, "end_month": end},
    )


@claim(34, "4.1, 6.2", "Index 100 → 38.5 with FP8", "G")
def fp8_index(evidence: Evidence) -> Finding:
    """Halving every byte and doubling every FLOP is the most that FP8 gives at constant batch."""
    needed = 100 / 38.5
    return Finding(
        HOLDS if needed <= 2 else WRONG,
        f"Needs {needed:.2f}×; FP8 alone gives at most 2× at constant batch: the rest must come from a larger batch or "
        "fewer GPUs",
        evidence.lever("quantization"),
        figures={"needed": needed, "bound": 2.0},
    )


@claim(36, "4.2", '38.5 → 28.6, "10 points"', "C, G")
def in_flight_points(evidence: Evidence) -> Finding:
    """Points of the index against the relative cut of that step."""
    rungs = cost_index([("FP8", 38.5), ("in-flight", 28.6)])
    relative = 1 - rungs[1].step
    return Finding(
        CONDITIONS,
        f"{38.5 - 28.6:.1f} points of the first rung's cost, −{relative:.1%} relative to the rung below",
        evidence.lever("in_flight_batching"),
        figures={"points": 38.5 - 28.6, "relative": relative},
    )


@claim(37, "4.3, 6.2", "28.6 → 21.7 (−78.3 % in all)", "C, G")
def ladder_total(evidence: Evidence) -> Finding:
    """The cumulative index of 6.2 against the guide's own range."""
    rungs = cost_index([("FP16", 100), ("FP8", 38.5), ("in-flight", 28.6), ("paged", 21.7)])
    total = rungs[-1].total_cut
    beyond = "beyond" if total > 0.70 else "within"
    return Finding(
        CONDITIONS if f"{total:.3f}" == "0.783" else WRONG,
        f'Arithmetic right (−{total:.1%}); {beyond} the guide\'s own "30–70 %"; no source; depends on the order of the levers',
        evidence.speedups(),
        figures={"total_cut": total},
    )


@claim(45, "6.1", "GPT-4 13.50, Claude 3 8.00, Gemini 2.0 3.00 $/M tokens", "P")
def api_prices(_: Evidence) -> Finding:
    """List rates of today, where the optional price list is installed."""
    say = "One blended figure each; list prices have separate input, cached-input and output rates"
    found: dict[str, float] = {}
    parts = []
    try:
        from inferoptim.economics.api_prices import api_price

        for model in ("openai/gpt-4", "google/gemini-2.0-flash"):
            price = api_price(model)
            cached = "–" if price.cached_input is None else f"{price.cached_input:g}"
            parts.append(f"{price.model} {price.input:g} / {cached} / {price.output:g}")
            found |= {f"{price.model} input": price.input, f"{price.model} output": price.output}
    except ModuleNotFoundError:
        return Finding(CONDITIONS, say + " (pip install 'inference-optim-llm[prices]' to see them)")
    return Finding(CONDITIONS, f"{say}: {'; '.join(parts)} $/M", figures=found)


@claim(46, "6.1", 'GPT-4 "48 GB+", Claude "40 GB+" VRAM', "P")
def closed_models_memory(_: Evidence) -> Finding:
    """No public parameter count, so no bytes: there is nothing to compute from."""
    disclosed: dict[str, float] = {}  # parameters published by the makers of GPT-4 and Claude
    return Finding(WRONG if not disclosed else CONDITIONS, "Not disclosed by their makers", figures=disclosed)


@claim(47, "6.3", "10 k€ × 12 × 40 % = 48 000 € is the ROI", "P")
def saving_is_not_roi(_: Evidence) -> Finding:
    """The product is right and is a saving; a return needs a cost."""
    saving = 10_000 * 12 * 0.40
    example = return_on_investment(saving, 30_000.0)
    return Finding(
        WRONG,
        f"{saving:,.0f} € is the saving. ROI = (saving − cost) / cost: with a stated cost of 30 000 € it is {example:.0%}",
        figures={"saving": saving, "roi_at_30k": example},
    )


@claim(48, "6.3", "−40 % bill *and* +50 % workload", "P")
def bill_and_capacity(_: Evidence) -> Finding:
    """Two readings of one gain in unit cost."""
    both, alone = unit_cut_for(0.40, 0.50), capacity_gain(0.40)
    return Finding(
        WRONG,
        f"Both together need unit cost −{both:.0%}; −40 % alone equals +{alone:.0%} capacity",
        figures={"unit_cut_for_both": both, "capacity_gain": alone},
    )


@claim(49, "6.4", "Gemini Ultra 192 M$, GPT-4 > 100 M$", "P")
def training_costs(_: Evidence) -> Finding:
    """What such a sum is in GPU-hours at a stated price, so that a reader can weigh it."""
    offer = _offer("aws-p5-capacity-block")
    years = 192e6 / offer.per_gpu_hour / HOURS_PER_YEAR
    return Finding(
        CONDITIONS,
        f"Third-party estimate; public statement. 192 M$ is {years:,.0f} H100-years at {offer.per_gpu_hour:.2f} $/h",
        figures={"h100_years": years},
    )


@claim(53, "8.5", "−40 % cost, −50 % P95, +100 % requests/s", "C, G")
def three_points(evidence: Evidence) -> Finding:
    """What the first and the last ask together, were they one point."""
    together = unit_cut_for(0.40, 1.0)
    return Finding(
        CONDITIONS,
        f"Three points of one frontier: state them at a fixed service level; −40 % bill with +100 % requests would need unit "
        f"cost −{together:.0%}",
        evidence.speedups(),
        figures={"unit_cut_for_both": together},
    )


@claim(54, "9.1", "2–10×, 30–70 %, +50 %", "–")
def restated(_: Evidence) -> Finding:
    """The three ranges turned into one unit: cut in unit cost."""
    speed = (1 - 1 / 2, 1 - 1 / 10)
    return Finding(
        CONDITIONS,
        f"Restates the above, and the three disagree: 2–10× is −{speed[0]:.0%} to −{speed[1]:.0%} of unit cost, +50 % capacity "
        f"is −{1 - 1 / 1.5:.0%}",
        figures={"cut_at_2x": speed[0], "cut_at_10x": speed[1], "cut_at_plus_50": 1 - 1 / 1.5},
    )
