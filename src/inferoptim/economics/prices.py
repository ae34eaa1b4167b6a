"""The dated catalogue of GPU offers: read, looked up by name, refused when unknown, warned about when old."""

from __future__ import annotations

import datetime as dt
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from inferoptim.economics.checks import positive, whole
from inferoptim.economics.gpu_hour import HOURS_PER_YEAR
from inferoptim.economics.toml_file import parse_toml, read_toml
from inferoptim.errors import ConfigError

MODES = ("purchase", "on-demand", "reserved", "spot", "capacity-block", "marketplace")
UNITS = ("node-hour", "gpu-hour", "node")


@dataclass(frozen=True, slots=True)
class Offer:
    """One price, as seen on one day at one place."""

    id: str
    provider: str
    name: str
    region: str
    mode: str
    gpu: str
    gpus_per_node: int
    price: float
    unit: str
    currency: str
    seen: dt.date
    source: str
    note: str = ""

    @property
    def is_purchase_of_hardware(self) -> bool:
        """True when the price buys a node: it needs amortising before it is an hourly price."""
        return self.unit == "node"

    @property
    def per_gpu_hour(self) -> float:
        """Price of one GPU for one hour, in `currency`.

        Raises:
            ConfigError: the offer is a purchase; `inferoptim cost --capex` amortises it.
        """
        if self.unit == "node":
            raise ConfigError(
                f"offer {self.id!r} is the price of a node, not of an hour: amortise it "
                f"(inferoptim cost --capex {self.price:g} --gpus-per-node {self.gpus_per_node} --years …)"
            )
        return self.price / self.gpus_per_node if self.unit == "node-hour" else self.price

    @property
    def per_node_hour(self) -> float:
        """Price of a whole node for one hour."""
        return self.per_gpu_hour * self.gpus_per_node

    @property
    def per_node_year(self) -> float:
        """Price of a whole node, day and night for a year of 8 760 hours."""
        return self.per_node_hour * HOURS_PER_YEAR

    def as_dict(self) -> dict[str, Any]:
        """Plain values; the date as ISO text."""
        values = asdict(self)
        values["seen"] = self.seen.isoformat()
        values["per_gpu_hour"] = None if self.unit == "node" else self.per_gpu_hour
        return values


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Offers by id, with the age past which each mode's prices are called stale."""

    offers: Mapping[str, Offer]
    max_age_days: Mapping[str, int]
    origin: str

    def find(self, name: str) -> Offer:
        """The offer of that id.

        Raises:
            ConfigError: unknown; the nearest ids are suggested.
        """
        if name in self.offers:
            return self.offers[name]
        raise ConfigError(f"unknown offer {name!r}: {_nearest(name, self.offers)} (inferoptim prices list)")

    def for_gpu(self, gpu: str) -> list[Offer]:
        """Every offer of that GPU, cheapest hour first, purchases last.

        Raises:
            ConfigError: no offer has that GPU; the nearest names are suggested.
        """
        wanted = gpu.casefold()
        found = [o for o in self.offers.values() if wanted in o.gpu.casefold()]
        if not found:
            raise ConfigError(
                f"no offer of GPU {gpu!r}: {_nearest(gpu, {o.gpu for o in self.offers.values()})}"
            )
        return sorted(
            found, key=lambda o: (o.is_purchase_of_hardware, o.price if o.unit == "node" else o.per_gpu_hour)
        )

    def warning(self, offer: Offer, today: dt.date | None = None) -> str | None:
        """One line when the price is older than its mode allows, with its date; None when fresh."""
        age = ((today or dt.date.today()) - offer.seen).days
        limit = self.max_age_days.get(offer.mode)
        if limit is None or age <= limit:
            return None
        return (
            f"price {offer.id!r} was seen on {offer.seen.isoformat()}, {age} days ago "
            f"(limit for {offer.mode}: {limit}): check it before you decide on it"
        )

    def merged(self, other: Catalogue) -> Catalogue:
        """This catalogue overridden by `other`, offer by offer."""
        return Catalogue(
            {**self.offers, **other.offers},
            {**self.max_age_days, **other.max_age_days},
            f"{self.origin} + {other.origin}",
        )


def _nearest(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    folded = {n.casefold(): n for n in names}
    close = difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.4)
    if not close:
        parts = {n.casefold() for n in names if any(p in n.casefold() for p in name.casefold().split())}
        close = sorted(parts)[:3]
    if close:
        return "did you mean " + ", ".join(repr(folded[c]) for c in close) + "?"
    return "known: " + ", ".join(names[:8])


_FIELDS = tuple(Offer.__dataclass_fields__)
_OPTIONAL = ("note", "region")


def offer_from_fields(fields: Mapping[str, Any], where: str) -> Offer:
    """Check one offer's fields.

    Raises:
        ConfigError: a field is missing, unknown or out of its set; `where` comes first in the message.
    """
    unknown = sorted(set(fields) - set(_FIELDS))
    missing = [name for name in _FIELDS if name not in fields and name not in _OPTIONAL]
    if unknown or missing:
        parts = [f"unknown field {', '.join(unknown)}"] if unknown else []
        parts += [f"missing field {', '.join(missing)}"] if missing else []
        raise ConfigError(f"{where}: {'; '.join(parts)}")
    if fields["mode"] not in MODES:
        raise ConfigError(f"{where}: mode {fields['mode']!r} is not one of {', '.join(MODES)}")
    if fields["unit"] not in UNITS:
        raise ConfigError(f"{where}: unit {fields['unit']!r} is not one of {', '.join(UNITS)}")
    seen = fields["seen"]
    if isinstance(seen, str):
        try:
            seen = dt.date.fromisoformat(seen)
        except ValueError:
            raise ConfigError(f"{where}: seen {seen!r} is not a date (YYYY-MM-DD)") from None
    if not isinstance(seen, dt.date) or isinstance(seen, dt.datetime):
        raise ConfigError(f"{where}: seen must be a date (YYYY-MM-DD)")
    currency = str(fields["currency"]).upper()
    if len(currency) != 3 or not currency.isalpha():
        raise ConfigError(f"{where}: currency {fields['currency']!r} is not a three-letter code")
    checked = {
        "price": positive(f"{where}: price", fields["price"]),
        "gpus_per_node": whole(f"{where}: gpus_per_node", fields["gpus_per_node"]),
        "currency": currency,
        "seen": seen,
    }
    return Offer(**{"region": "", **fields, **checked})


def catalogue_from(data: Mapping[str, Any], origin: str) -> Catalogue:
    """Check a catalogue read from TOML.

    Raises:
        ConfigError: an unknown table, an offer that does not check, or the same id twice.
    """
    unknown = sorted(set(data) - {"max_age_days", "offer"})
    if unknown:
        raise ConfigError(f"{origin}: unknown table {', '.join(unknown)} (expected max_age_days, offer)")
    offers: dict[str, Offer] = {}
    for number, fields in enumerate(data.get("offer", []), start=1):
        where = f"{origin}: offer {fields.get('id', number)!r}"
        offer = offer_from_fields(fields, where)
        if offer.id in offers:
            raise ConfigError(f"{where}: the id appears twice")
        offers[offer.id] = offer
    ages = {
        mode: whole(f"{origin}: max_age_days.{mode}", days)
        for mode, days in data.get("max_age_days", {}).items()
    }
    return Catalogue(offers, ages, origin)


def load_catalogue(override: Path | None = None) -> Catalogue:
    """The catalogue shipped with the package, overridden by a TOML file if one is given.

    Raises:
        ConfigError: the file cannot be read or does not check.
    """
    text = resources.files("inferoptim.economics").joinpath("prices.toml").read_text(encoding="utf-8")
    shipped = catalogue_from(parse_toml(text, "prices.toml"), "prices.toml")
    if override is None:
        return shipped
    return shipped.merged(catalogue_from(read_toml(override), str(override)))
