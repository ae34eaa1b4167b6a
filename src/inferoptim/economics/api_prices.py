"""List prices of hosted APIs, with input, cached input and output apart. From the `genai-prices` package."""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict, dataclass
from typing import Any

from inferoptim.errors import ConfigError

CURRENCY = "USD"  # genai-prices states US dollars


@dataclass(frozen=True, slots=True)
class ApiPrice:
    """List price of one model, USD per million tokens. None: the list states none."""

    provider: str
    model: str
    input: float
    cached_input: float | None
    output: float
    source: str
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON and tables."""
        return asdict(self)

    def per_request(self, input_tokens: float, output_tokens: float, cache_hit: float = 0.0) -> float:
        """USD of one request; cached tokens cost the full input rate where the list states no other."""
        cached = self.input if self.cached_input is None else self.cached_input
        hits = input_tokens * cache_hit
        return ((input_tokens - hits) * self.input + hits * cached + output_tokens * self.output) / 1e6


def api_price(model: str, today: dt.date | None = None) -> ApiPrice:
    """List price of `model`, written ``name`` or ``provider/name``, in force on `today`.

    Raises:
        ConfigError: unknown provider or model (nearest names suggested), or a model not priced by text token.
    """
    from genai_prices import data_snapshot

    snapshot = data_snapshot.get_snapshot()
    provider_id, _, name = model.rpartition("/")
    try:
        provider, info = snapshot.find_provider_model(name, None, provider_id or None, None)
    except LookupError:
        raise ConfigError(f"no list price for {model!r}: {_nearest(name, provider_id, snapshot)}") from None
    day = today or dt.date.today()
    prices = info.get_prices(dt.datetime.combine(day, dt.time(12), tzinfo=dt.timezone.utc))
    tiers: list[str] = []
    values = {
        field: _base(getattr(prices, field, None), tiers)
        for field in ("input_mtok", "cache_read_mtok", "output_mtok")
    }
    if values["input_mtok"] is None or values["output_mtok"] is None:
        raise ConfigError(f"{provider.id}/{info.id} is not priced by text token: take another model")
    notes = [info.price_comments or "", *tiers]
    return ApiPrice(
        provider=provider.id,
        model=info.id,
        input=values["input_mtok"],
        cached_input=values["cache_read_mtok"],
        output=values["output_mtok"],
        source=f"genai-prices {_version()}"
        + (f", {provider.pricing_urls[0]}" if provider.pricing_urls else ""),
        note=" ".join(note for note in notes if note),
    )


def _base(price: Any, tiers: list[str]) -> float | None:
    """The rate of short prompts; a note when long ones cost another."""
    if price is None:
        return None
    if hasattr(price, "tiers"):
        if price.tiers and not tiers:
            tiers.append(f"Other rates above {price.tiers[0].start:,} tokens.")
        price = price.base
    return float(price)


def _version() -> str:
    from importlib.metadata import version

    return version("genai-prices")


def _nearest(name: str, provider_id: str, snapshot: Any) -> str:
    import difflib

    ids = {
        f"{p.id}/{m.id}": m.id
        for p in snapshot.providers
        if not provider_id or p.id == provider_id
        for m in p.models
    }
    if not ids:
        known = ", ".join(sorted(p.id for p in snapshot.providers)[:12])
        return f"unknown provider {provider_id!r} (known: {known}, …)"
    close = difflib.get_close_matches(name.lower(), ids.values(), n=3, cutoff=0.4)
    hits = [full for full, short in ids.items() if short in close][:3]
    return f"did you mean {', '.join(hits)}?" if hits else "no name comes near"
