"""Currencies: amounts are converted only by rates that the user stated. None is built in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from inferoptim.economics.checks import positive
from inferoptim.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Rates:
    """Stated exchange rates: ``pairs[("EUR", "USD")] = 1.16`` reads "one EUR is 1.16 USD"."""

    pairs: Mapping[tuple[str, str], float] = field(default_factory=dict)

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Rates:
        """Read ``EURUSD=1.16`` texts.

        Raises:
            ConfigError: another form, a rate that is not above zero, or the same pair twice.
        """
        pairs: dict[tuple[str, str], float] = {}
        for text in texts:
            name, _, rate = text.partition("=")
            name = name.strip().upper().replace("/", "")
            if len(name) != 6 or not name.isalpha() or not rate:
                raise ConfigError(f"--rate {text!r}: write it as EURUSD=1.16 (one EUR is 1.16 USD)")
            pair = (name[:3], name[3:])
            if pair in pairs or pair[::-1] in pairs:
                raise ConfigError(f"--rate {text!r}: the pair {pair[0]}/{pair[1]} is stated twice")
            try:
                pairs[pair] = positive(f"rate {name}", float(rate))
            except ValueError:
                raise ConfigError(f"--rate {text!r}: {rate!r} is not a number") from None
        return cls(pairs)

    def factor(self, source: str, to: str) -> float:
        """Units of `to` for one unit of `source`.

        Raises:
            ConfigError: no rate was stated for the pair.
        """
        if source == to:
            return 1.0
        if (source, to) in self.pairs:
            return self.pairs[source, to]
        if (to, source) in self.pairs:
            return 1.0 / self.pairs[to, source]
        raise ConfigError(
            f"amounts in {source} and {to} are mixed without a rate: state one, e.g. --rate {source}{to}=<{to} for one {source}>"
        )

    def convert(self, amount: float, source: str, to: str) -> float:
        """`amount` of `source` in `to`; see `factor`."""
        return amount * self.factor(source, to)
