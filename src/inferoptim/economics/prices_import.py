"""Catalogues of others turned into ours: SkyPilot-style CSV (one row an instance type and region) to offers."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import math
import re
from collections.abc import Iterable

from inferoptim.economics.prices import Offer
from inferoptim.errors import DataError

NEEDED = ("InstanceType", "AcceleratorName", "AcceleratorCount", "Price")


def offers_from_skypilot(
    text: str,
    *,
    provider: str,
    seen: dt.date,
    source: str,
    gpu: str | None = None,
    region: str | None = None,
    currency: str = "USD",
) -> list[Offer]:
    """Read a SkyPilot ``vms.csv`` (schema v5 and later).

    Rows without accelerator or price are skipped: they are CPU machines or not for sale. A row with a spot price
    gives a second offer. The cheapest zone of a region wins.

    Args:
        seen: the day the catalogue was fetched; the CSV does not say.
        gpu: keep only accelerators whose name contains this, any case.
        region: keep only this region.

    Raises:
        DataError: not such a CSV, or a row whose numbers do not parse; the line is named.
    """
    reader = csv.DictReader(io.StringIO(text))
    missing = [name for name in NEEDED if name not in (reader.fieldnames or ())]
    if missing:
        raise DataError(f"{source}: not a SkyPilot vms.csv (no column {', '.join(missing)})")
    found: dict[str, Offer] = {}
    for row in reader:
        name = (row["AcceleratorName"] or "").strip()
        place = (row.get("Region") or "").strip()
        if not name or (gpu and gpu.casefold() not in name.casefold()) or (region and region != place):
            continue
        where = f"{source}: line {reader.line_num}"
        count = _number(row["AcceleratorCount"], where, "AcceleratorCount")
        if count is None or count < 1 or count != int(count):
            continue  # fractional accelerators cannot be priced by the GPU
        for column, mode in (("Price", "on-demand"), ("SpotPrice", "spot")):
            price = _number(row.get(column), where, column)
            if price is None or price <= 0:
                continue
            instance = row["InstanceType"].strip()
            key = _slug(provider, instance, place, *(["spot"] if mode == "spot" else []))
            if key in found and found[key].price <= price:
                continue
            found[key] = Offer(
                id=key,
                provider=provider,
                name=instance,
                region=place,
                mode=mode,
                gpu=name,
                gpus_per_node=int(count),
                price=price,
                unit="node-hour",
                currency=currency,
                seen=seen,
                source=source,
            )
    return list(found.values())


def _number(text: str | None, where: str, column: str) -> float | None:
    if text is None or not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        raise DataError(f"{where}: {column} {text!r} is not a number") from None
    return value if math.isfinite(value) else None


def _slug(*parts: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", "-".join(p for p in parts if p).lower()).strip("-")


def offers_to_toml(offers: Iterable[Offer]) -> str:
    """A price catalogue that `--prices` reads."""
    blocks = []
    for offer in offers:
        lines = ["[[offer]]"]
        for name, value in offer.as_dict().items():
            if name == "per_gpu_hour" or (name == "note" and not value):
                continue
            # A JSON string is a TOML basic string; dates are written bare.
            text = value if name == "seen" else json.dumps(value, ensure_ascii=False)
            lines.append(f"{name} = {text}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"
