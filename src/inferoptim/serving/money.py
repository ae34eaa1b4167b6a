"""Live cost: measured engine seconds times a stated price per hour, by tenant and by phase. No price, no cost."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from inferoptim.errors import ConfigError

OTHERS = "other"
_SECONDS_PER_HOUR = 3600.0
_JOULES_PER_KWH = 3.6e6
_MILLION = 1e6


@dataclass(frozen=True, slots=True)
class Prices:
    """What the operator states. None is not stated."""

    usd_per_hour: float | None = None  # of this machine, or of the share of it that serves
    usd_per_kwh: float | None = None  # of electricity; applied to measured energy only

    def __post_init__(self) -> None:
        for name in ("usd_per_hour", "usd_per_kwh"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1e9:
                raise ConfigError(f"{name} must be a price of 0 or more, not {value}")


@dataclass(slots=True)
class Account:
    """One tenant's use since the server started."""

    prefill_s: float = 0.0  # engine seconds
    decode_s: float = 0.0
    prompt_tokens: int = 0  # cached ones included: the client sent them
    cached_tokens: int = 0  # of those, found in the prefix cache: they used no engine time
    generation_tokens: int = 0
    requests: int = 0


@dataclass(slots=True)
class Ledger:
    """Accounts by tenant. At most `max_tenants` names; later ones share the account 'other'.

    A request's engine seconds are booked on its tenant as they are used. Seconds that the engine spent on no request
    (idle) are counted apart: they cost as much, and belong to nobody.
    """

    prices: Prices
    max_tenants: int = 50
    accounts: dict[str, Account] = field(default_factory=dict)
    _started_s: float = field(default_factory=time.perf_counter)

    def label(self, tenant: str) -> str:
        """The name under which this tenant is booked."""
        if tenant in self.accounts:
            return tenant
        if len(self.accounts) < self.max_tenants or tenant == OTHERS:
            self.accounts[tenant] = Account()
            return tenant
        return self.label(OTHERS)

    def usd(self, seconds: float) -> float | None:
        """Price of so many seconds of this machine; None without a stated price."""
        return (
            None
            if self.prices.usd_per_hour is None
            else seconds / _SECONDS_PER_HOUR * self.prices.usd_per_hour
        )

    def energy_usd(self, joules: float) -> float | None:
        """Price of so much measured energy; None without a stated price."""
        return None if self.prices.usd_per_kwh is None else joules / _JOULES_PER_KWH * self.prices.usd_per_kwh

    @property
    def wall_s(self) -> float:
        """Seconds since the ledger was opened."""
        return time.perf_counter() - self._started_s

    @property
    def used_s(self) -> float:
        """Engine seconds booked on tenants."""
        return sum(a.prefill_s + a.decode_s for a in self.accounts.values())

    def per_million(self, account: Account) -> dict[str, float]:
        """USD per million tokens of this account by direction, engine time only; no entry where nothing was measured.

        Input is the cost of prefill over all prompt tokens, so cached ones make it cheaper; output is the cost of
        decode over generated tokens.
        """
        result = {}
        for direction, seconds, tokens in (
            ("input", account.prefill_s, account.prompt_tokens),
            ("output", account.decode_s, account.generation_tokens),
        ):
            usd = self.usd(seconds)
            if usd is not None and tokens:
                result[direction] = usd / tokens * _MILLION
        return result

    @property
    def total(self) -> Account:
        """All accounts together."""
        accounts = self.accounts.values()
        return Account(
            sum(a.prefill_s for a in accounts),
            sum(a.decode_s for a in accounts),
            sum(a.prompt_tokens for a in accounts),
            sum(a.cached_tokens for a in accounts),
            sum(a.generation_tokens for a in accounts),
            sum(a.requests for a in accounts),
        )
