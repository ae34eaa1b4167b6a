"""What every economic input must satisfy, refused by name before any formula sees it."""

from __future__ import annotations

import math

from inferoptim.errors import ConfigError


def finite(name: str, value: float) -> float:
    """Return `value` as a float; refuse NaN, infinity and what is not a number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{name} is {value!r}: give a number") from None
    if not math.isfinite(number):
        raise ConfigError(f"{name} is {number}: give a finite number")
    return number


def positive(name: str, value: float) -> float:
    """Return `value`; refuse zero and below (a rate, a price or a duration divides something)."""
    number = finite(name, value)
    if number <= 0:
        raise ConfigError(f"{name} is {number:g}: must be above zero")
    return number


def non_negative(name: str, value: float) -> float:
    """Return `value`; refuse anything below zero."""
    number = finite(name, value)
    if number < 0:
        raise ConfigError(f"{name} is {number:g}: must not be negative")
    return number


def share(name: str, value: float, *, zero: bool = True) -> float:
    """Return `value` in [0, 1] (or ]0, 1] when `zero` is False): utilisation, hit rate, residual share."""
    number = finite(name, value)
    if number > 1 or number < 0 or (number == 0 and not zero):
        low = "0" if zero else "above 0"
        raise ConfigError(f"{name} is {number:g}: a share goes from {low} to 1 (70 % is 0.7)")
    return number


def whole(name: str, value: float) -> int:
    """Return `value` as a positive whole number (GPUs, nodes, years of a plan)."""
    number = positive(name, value)
    if number != int(number):
        raise ConfigError(f"{name} is {number:g}: must be a whole number")
    return int(number)
