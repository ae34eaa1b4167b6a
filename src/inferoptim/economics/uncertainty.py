"""Ranges of inputs carried to every output: seeded Monte-Carlo and one-at-a-time tornado, vectorised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from inferoptim.economics.checks import finite, whole
from inferoptim.economics.draws import stream_key, unit_draws
from inferoptim.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DRAWS = 10_000
SHAPES = ("triangular", "uniform", "measured")
Z95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class Range:
    """An input that is not known exactly.

    ``triangular`` and ``uniform`` lie between low and high; ``measured`` reads low and high as the ends of a 95 %
    interval around `mode` and draws from a two-piece normal (median `mode`).
    """

    low: float
    mode: float
    high: float
    shape: str = "triangular"

    def __post_init__(self) -> None:
        for name in ("low", "mode", "high"):
            finite(name, getattr(self, name))
        if not self.low <= self.mode <= self.high:
            raise ConfigError(
                f"a range needs low ≤ mode ≤ high, this one is {self.low:g}, {self.mode:g}, {self.high:g}"
            )
        if self.shape not in SHAPES:
            raise ConfigError(f"range shape {self.shape!r} is not one of {', '.join(SHAPES)}")

    def quantile(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """Inverse distribution function at `u` in ]0, 1[.

        Source: Kotz & van Dorp, Beyond Beta, ch. 1 (triangular); two-piece normal: Wallis, Statistical Science 2014.
        """
        import numpy as np

        low, mode, high = self.low, self.mode, self.high
        values: NDArray[np.float64]
        if self.shape == "uniform":
            values = low + u * (high - low)
            return values
        if self.shape == "triangular":
            width = high - low
            if width == 0:
                return np.full_like(u, mode)
            left = u * width <= mode - low
            rising = low + np.sqrt(u * width * (mode - low))
            falling = high - np.sqrt((1.0 - u) * width * (high - mode))
            values = np.where(left, rising, falling)
            return values
        z = np.fromiter(map(NormalDist().inv_cdf, u.tolist()), dtype=float, count=u.size)
        spread: NDArray[np.float64] = np.where(z < 0, (mode - low) / Z95, (high - mode) / Z95)
        values = mode + spread * z
        return values


def parse_range(name: str, value: Any) -> float | Range:
    """Read a number, or a table {low, mode, high[, shape]}.

    Raises:
        ConfigError: another form.
    """
    if isinstance(value, Mapping):
        unknown = sorted(set(value) - {"low", "mode", "high", "shape"})
        missing = [key for key in ("low", "mode", "high") if key not in value]
        if unknown or missing:
            raise ConfigError(f"{name}: a range is {{low, mode, high[, shape]}}, got {dict(value)!r}")
        low, mode, high = (finite(f"{name}.{key}", value[key]) for key in ("low", "mode", "high"))
        return Range(low, mode, high, value.get("shape", "triangular"))
    if isinstance(value, bool):
        raise ConfigError(f"{name} is {value}: give a number")
    return finite(name, value)


def draw(
    ranges: Mapping[str, Range],
    draws: int = DRAWS,
    seed: int = 0,
    bounds: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Draws of each ranged input. Each has its own stream, so that adding one input leaves the others' draws alone.

    Draws of a measured range that fall outside `bounds` of the input are moved to the bound.
    """
    import numpy as np

    result = {}
    for name, spread in ranges.items():
        u = unit_draws(stream_key(name, seed), whole("draws", draws))
        values = spread.quantile(u)
        if bounds and name in bounds:
            values = np.clip(values, *bounds[name])
        result[name] = values
    return result


@dataclass(frozen=True, slots=True)
class Spread:
    """What the draws gave for one output."""

    value: float | None  # with every input at its mode
    mean: float | None
    median: float | None
    low: float | None  # 2.5 %
    high: float | None  # 97.5 %
    positive_share: float  # draws above zero, of those defined
    undefined_share: float  # draws where the figure does not exist (never pays back)

    def as_dict(self) -> dict[str, float | None]:
        """Plain values for JSON and tables."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def summarise(value: float, draws: Any) -> Spread:
    """Mean, median and central 95 % of the draws where the output is defined."""
    import numpy as np

    array = np.atleast_1d(np.asarray(draws, float))
    known = array[~np.isnan(array)]
    central = None if value != value else float(value)
    undefined = 1.0 - known.size / array.size
    if known.size == 0:
        return Spread(central, None, None, None, None, 0.0, undefined)
    low, median, high = (float(q) for q in np.quantile(known, [0.025, 0.5, 0.975]))
    return Spread(central, float(known.mean()), median, low, high, float((known > 0).mean()), undefined)


Model = Callable[[Mapping[str, Any]], dict[str, Any]]


def monte_carlo(
    model: Model,
    inputs: Mapping[str, float | Range],
    draws: int = DRAWS,
    seed: int = 0,
    bounds: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, Spread]:
    """Run `model` once on arrays of draws; every output with its spread.

    Args:
        model: maps named inputs to named outputs; must accept numpy arrays in place of floats.
        inputs: numbers, and ranges.
    """
    central = {name: v.mode if isinstance(v, Range) else v for name, v in inputs.items()}
    ranges = {name: v for name, v in inputs.items() if isinstance(v, Range)}
    at_mode = model(central)
    sampled = model({**central, **draw(ranges, draws, seed, bounds)}) if ranges else at_mode
    return {name: summarise(at_mode[name], sampled[name]) for name in at_mode}


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a tornado: the output with one input at the ends of its range, all others at their mode."""

    name: str
    input_low: float
    input_high: float
    at_low: float | None
    at_high: float | None

    @property
    def swing(self) -> float:
        """Distance between both ends; 0 where one is undefined."""
        if self.at_low is None or self.at_high is None:
            return 0.0
        return abs(self.at_high - self.at_low)


def tornado(model: Model, inputs: Mapping[str, float | Range], output: str) -> tuple[Bar, ...]:
    """What matters most for `output`: each ranged input moved alone, widest swing first."""
    central = {name: v.mode if isinstance(v, Range) else v for name, v in inputs.items()}
    bars = []
    for name, spread in inputs.items():
        if not isinstance(spread, Range):
            continue
        ends = []
        for end in (spread.low, spread.high):
            value = float(model({**central, name: end})[output])
            ends.append(None if value != value else value)
        bars.append(Bar(name, spread.low, spread.high, ends[0], ends[1]))
    return tuple(sorted(bars, key=lambda bar: -bar.swing))
