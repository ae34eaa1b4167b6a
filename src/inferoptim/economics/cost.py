"""Cost of tokens: from GPU-seconds and the price of a GPU hour to money per million tokens.

`cost_per_million` and the other plain formulas accept numpy arrays wherever they accept floats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inferoptim.economics.checks import finite, non_negative, positive, share
from inferoptim.errors import ConfigError

MILLION = 1e6
SECONDS_PER_HOUR = 3600.0
JOULES_PER_KWH = 3.6e6


def cost_per_million(price_per_hour: float, tokens_per_s: float, utilisation: float = 1.0) -> float:
    """Money per million tokens of a machine that costs `price_per_hour` and makes `tokens_per_s` when busy.

    `utilisation` is the share of paid hours in which it is busy.
    Source: definition; 4 $/h at 1 000 tok/s = 4 / 3.6 M tok = 1.111 $ per million.
    """
    return price_per_hour / SECONDS_PER_HOUR / (tokens_per_s * utilisation) * MILLION


def energy_kwh_per_million(energy_j_per_token: float, pue: float = 1.0) -> float:
    """Energy of a million tokens at the meter of the site, kWh: joules at the machine × PUE / 3.6 MJ."""
    return energy_j_per_token * MILLION * pue / JOULES_PER_KWH


@dataclass(frozen=True, slots=True)
class GpuTimeSplit:
    """GPU time of one prompt token and of one output token, seconds; and where it comes from."""

    s_per_input_token: float
    s_per_output_token: float
    basis: str

    def __post_init__(self) -> None:
        non_negative("GPU time of an input token", self.s_per_input_token)
        positive("GPU time of an output token", self.s_per_output_token)

    def request_s(self, input_tokens: float, output_tokens: float, cache_hit: float = 0.0) -> float:
        """GPU-seconds of one request; hits of the prefix cache spare prefill only."""
        return (
            input_tokens * (1.0 - cache_hit) * self.s_per_input_token
            + output_tokens * self.s_per_output_token
        )


def split_gpu_time(observations: Sequence[tuple[float, float, float]]) -> GpuTimeSplit | None:
    """Split GPU time between input and output from runs of different shapes.

    Args:
        observations: (computed input tokens, output tokens, GPU-seconds) of each run, at like concurrency.

    Returns:
        Least squares of a·input + b·output = seconds on relative errors; None where the shapes are too alike to
        tell (input/output ratios within 20 %), or where the fit would make a token cost less than nothing.

    Source: ordinary least squares with two unknowns, rows divided by their own seconds.
    """
    for index, (inputs, outputs, seconds) in enumerate(observations):
        non_negative(f"run {index}: input tokens", inputs)
        non_negative(f"run {index}: output tokens", outputs)
        positive(f"run {index}: GPU-seconds", seconds)
    angles = [i / (i + o) for i, o, _ in observations if i + o > 0]
    if len(angles) < 2 or max(angles) - min(angles) < 0.2 * max(angles):
        return None
    xx = xy = yy = xb = yb = 0.0
    for inputs, outputs, seconds in observations:
        x, y = inputs / seconds, outputs / seconds
        xx, xy, yy, xb, yb = xx + x * x, xy + x * y, yy + y * y, xb + x, yb + y
    determinant = xx * yy - xy * xy
    if determinant <= 1e-12 * xx * yy:
        return None
    per_input = (xb * yy - yb * xy) / determinant
    per_output = (yb * xx - xb * xy) / determinant
    if per_input < 0 or per_output <= 0:
        return None
    return GpuTimeSplit(per_input, per_output, f"fit of {len(observations)} runs of different shapes")


@dataclass(frozen=True, slots=True)
class Serving:
    """What one priced unit (a GPU, a node, a CPU host) was measured or stated to do when busy."""

    price_per_hour: float
    currency: str
    output_tokens_per_s: float
    input_tokens_per_request: float | None = None
    output_tokens_per_request: float | None = None
    goodput_requests_per_s: float | None = None  # requests/s that met the objective
    slo: str = ""  # the objective, in words
    utilisation: float = 1.0
    cache_hit: float = 0.0  # share of prompt tokens found in the prefix cache
    split: GpuTimeSplit | None = None
    energy_j_per_token: float | None = None
    pue: float = 1.0
    kwh_price: float | None = None
    carbon_g_per_kwh: float | None = None

    def __post_init__(self) -> None:
        positive("price per hour", self.price_per_hour)
        positive("output tokens per second", self.output_tokens_per_s)
        share("utilisation", self.utilisation, zero=False)
        share("cache_hit", self.cache_hit)
        if finite("PUE", self.pue) < 1:
            raise ConfigError(
                f"PUE is {self.pue:g}: at least 1 (all power of the site / power of the machines)"
            )
        for name in (
            "input_tokens_per_request",
            "output_tokens_per_request",
            "goodput_requests_per_s",
            "energy_j_per_token",
        ):
            if getattr(self, name) is not None:
                positive(name, getattr(self, name))
        for name in ("kwh_price", "carbon_g_per_kwh"):
            if getattr(self, name) is not None:
                non_negative(name, getattr(self, name))
        if self.goodput_requests_per_s and not self.output_tokens_per_request:
            raise ConfigError("goodput is in requests: state the output tokens per request too")


@dataclass(frozen=True, slots=True)
class TokenCost:
    """Cost of tokens. None = not measured, with the reason in `caveats`."""

    currency: str
    per_million_output: float  # the whole bill over output tokens
    per_million_total: float | None = None  # the whole bill over prompt + output tokens
    per_million_input_apart: float | None = None  # by measured GPU time, cache misses only
    per_million_input_after_cache: float | None = None
    per_million_output_apart: float | None = None
    per_request: float | None = None
    tokens_per_s_priced: float = 0.0
    at: str = ""
    energy_kwh_per_million_output: float | None = None
    energy_cost_per_million_output: float | None = None
    carbon_g_per_million_output: float | None = None
    caveats: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON and tables."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def token_cost(serving: Serving) -> TokenCost:
    """Price tokens at the service level if goodput is known, at peak throughput (said so) otherwise."""
    caveats: list[str] = []
    rate = serving.output_tokens_per_s
    at = "peak throughput"
    if serving.goodput_requests_per_s and serving.output_tokens_per_request:
        rate = serving.goodput_requests_per_s * serving.output_tokens_per_request
        at = f"goodput at {serving.slo or 'the stated service level'}"
    else:
        caveats.append("priced at peak throughput: no goodput at a service level was measured")
    at += f", utilisation {serving.utilisation:.0%}"
    whole = cost_per_million(serving.price_per_hour, rate, serving.utilisation)
    total = request = None
    if serving.input_tokens_per_request and serving.output_tokens_per_request:
        per_request_tokens = serving.input_tokens_per_request + serving.output_tokens_per_request
        total = whole * serving.output_tokens_per_request / per_request_tokens
        request = whole * serving.output_tokens_per_request / MILLION
    apart = _apart(serving, rate, caveats)
    kwh = energy_money = carbon = None
    if serving.energy_j_per_token is None:
        caveats.append("energy and carbon: not measured")
    else:
        kwh = energy_kwh_per_million(serving.energy_j_per_token, serving.pue)
        if serving.kwh_price is not None:
            energy_money = kwh * serving.kwh_price
        if serving.carbon_g_per_kwh is None:
            caveats.append("carbon: state the grid's g CO2e/kWh")
        else:
            carbon = kwh * serving.carbon_g_per_kwh
    return TokenCost(
        currency=serving.currency,
        per_million_output=whole,
        per_million_total=total,
        per_million_input_apart=apart[0],
        per_million_input_after_cache=apart[1],
        per_million_output_apart=apart[2],
        per_request=request,
        tokens_per_s_priced=rate,
        at=at,
        energy_kwh_per_million_output=kwh,
        energy_cost_per_million_output=energy_money,
        carbon_g_per_million_output=carbon,
        caveats=tuple(caveats),
    )


def _apart(
    serving: Serving, rate: float, caveats: list[str]
) -> tuple[float | None, float | None, float | None]:
    """(input on a cache miss, input at the hit rate, output), scaled so that both together make the whole bill."""
    split, inputs, outputs = (
        serving.split,
        serving.input_tokens_per_request,
        serving.output_tokens_per_request,
    )
    if split is None or not inputs or not outputs:
        caveats.append("input and output apart: not measured (needs runs of different prompt/output shapes)")
        return None, None, None
    bill_per_request = serving.price_per_hour / SECONDS_PER_HOUR / (rate / outputs) / serving.utilisation
    money_per_gpu_s = bill_per_request / split.request_s(inputs, outputs, serving.cache_hit)
    miss = money_per_gpu_s * split.s_per_input_token * MILLION
    return miss, miss * (1.0 - serving.cache_hit), money_per_gpu_s * split.s_per_output_token * MILLION
