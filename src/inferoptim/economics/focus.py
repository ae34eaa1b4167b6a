"""FOCUS-style export: the cost lines of a day as the FinOps open specification names them.

Source: FinOps Open Cost and Usage Specification (FOCUS) 1.2, column definitions; own columns carry the prefix ``x_``.
"""

from __future__ import annotations

import csv
import datetime as dt
import io

from inferoptim.economics.checks import positive
from inferoptim.economics.cost import TokenCost
from inferoptim.economics.gpu_hour import GpuHour

COLUMNS = (
    "BillingCurrency", "BillingPeriodStart", "BillingPeriodEnd", "ChargePeriodStart", "ChargePeriodEnd", "ChargeCategory",
    "ChargeDescription", "ProviderName", "PublisherName", "RegionId", "ServiceCategory", "ServiceName", "ResourceId",
    "ResourceType", "PricingCategory", "PricingQuantity", "PricingUnit", "ListUnitPrice", "ConsumedQuantity",
    "ConsumedUnit", "ListCost", "ContractedCost", "EffectiveCost", "BilledCost", "x_CostPerMillionOutputTokens",
    "x_ServiceLevel", "x_Caveats",
)  # fmt: skip

_CATEGORY = {
    "spot": "Dynamic",
    "marketplace": "Dynamic",
    "reserved": "Committed",
    "capacity-block": "Committed",
}


def focus_csv(
    hour: GpuHour,
    cost: TokenCost | None,
    *,
    day: dt.date,
    gpus: float,
    provider: str,
    resource: str,
    region: str = "",
    hours: float = 24.0,
) -> str:
    """Cost lines of one day, one a term of the GPU hour, in FOCUS columns.

    These are computed from stated inputs, not billed: `ChargeDescription` says so on every line.
    """
    positive("GPUs", gpus)
    positive("hours", hours)
    start = dt.datetime.combine(day, dt.time(), tzinfo=dt.timezone.utc)
    end = start + dt.timedelta(days=1)
    month = start.replace(day=1)
    next_month = (month + dt.timedelta(days=32)).replace(day=1)
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    for term in hour.terms:
        amount = round(term.per_gpu_hour * gpus * hours, 10)
        writer.writerow({
            "BillingCurrency": hour.currency,
            "BillingPeriodStart": _iso(month),
            "BillingPeriodEnd": _iso(next_month),
            "ChargePeriodStart": _iso(start),
            "ChargePeriodEnd": _iso(end),
            "ChargeCategory": "Usage",
            "ChargeDescription": f"computed, not billed: {term.name} ({term.basis})",
            "ProviderName": provider,
            "PublisherName": provider,
            "RegionId": region,
            "ServiceCategory": "AI and Machine Learning",
            "ServiceName": "LLM inference",
            "ResourceId": resource,
            "ResourceType": "GPU",
            "PricingCategory": _CATEGORY.get(hour.label, "Standard"),
            "PricingQuantity": gpus * hours,
            "PricingUnit": "GPU-Hours",
            "ListUnitPrice": term.per_gpu_hour,
            "ConsumedQuantity": gpus * hours,
            "ConsumedUnit": "GPU-Hours",
            "ListCost": amount,
            "ContractedCost": amount,
            "EffectiveCost": amount,
            "BilledCost": amount,
            "x_CostPerMillionOutputTokens": "" if cost is None else cost.per_million_output,
            "x_ServiceLevel": "" if cost is None else cost.at,
            "x_Caveats": "" if cost is None else "; ".join(cost.caveats),
        })  # fmt: skip
    return out.getvalue()


def _iso(moment: dt.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
