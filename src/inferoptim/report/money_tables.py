"""What `economics.json` adds to the report: costs beside the headline price, attribution, and the guide's claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from inferoptim.economics.claims.model import Verdict
from inferoptim.records.schema import Interval
from inferoptim.report.facts import Facts
from inferoptim.report.language import Cell, Language, clean
from inferoptim.report.table import Row, Table
from inferoptim.report.verdict import known_lever

# Field of a token cost, key of its column, and whether it is money.
_COLUMNS = (
    ("per_million_total", "cost_total", True),
    ("per_million_input_apart", "cost_input", True),
    ("per_million_output_apart", "cost_output", True),
    ("energy_kwh_per_million_output", "cost_kwh", False),
    ("carbon_g_per_million_output", "cost_carbon", False),
)


def cost_tables(facts: Facts, language: Language) -> list[Table]:
    """A table a workload: cost over all tokens, of prompt and output apart, energy. Columns that nothing fills are left out."""
    economics = facts.run.economics or {}
    currency = str(economics.get("currency", facts.run.summary.currency))
    numbers = {rung.id: rung.number for rung in facts.rungs}
    tables = []
    for workload in economics.get("workloads", ()):
        priced = [row for row in workload["configurations"] if row.get("cost")]
        kept = [
            column for column in _COLUMNS if any(row["cost"].get(column[0]) is not None for row in priced)
        ]
        if not kept:
            continue
        rows = tuple(
            Row(
                clean(row["label"]),
                tuple(
                    _cost_cell(row["cost"].get(field), money, currency, language) for field, _, money in kept
                ),
                numbers.get(row["config_id"]),
            )
            for row in priced
        )
        heads = tuple(language(f"column.{key}") for _, key, _ in kept)
        caption = language("caption.cost_apart", workload=clean(workload["workload"]))
        tables.append(Table(caption, language("column.configuration"), heads, rows))
    return tables


def cost_caveats(facts: Facts) -> list[str]:
    """What must be read beside the prices, each once; a caveat of one configuration carries its name."""
    economics = facts.run.economics or {}
    found: list[str] = [clean(text) for text in economics.get("caveats", ())]
    for workload in economics.get("workloads", ()):
        for row in workload["configurations"]:
            shared = set((row.get("cost") or {}).get("caveats", ()))
            found += [
                clean(text if text in shared else f"{row['label']}: {text}")
                for text in row.get("caveats", ())
            ]
    return list(dict.fromkeys(found))


def claims_table(facts: Facts, language: Language) -> Table | None:
    """The guide's claims that this run measured something about; None where economics.json holds none."""
    claims = (facts.run.economics or {}).get("claims") or ()
    rows = tuple(
        Row(
            f"{claim['place']} {clean(claim['claim'])}",
            (Cell(clean(claim["measured_here"])), Cell(_verdict(claim["verdict"], language))),
            claim["number"],
        )
        for claim in claims
    )
    if not rows:
        return None
    heads = (language("column.measured"), language("column.claim_verdict"))
    return Table(language("caption.claims"), language("column.claim"), heads, rows)


def attribution_table(facts: Facts, language: Language) -> Table | None:
    """The cost attribution of `economics.json`, where that file exists: a row a lever, a column a method.

    It reads `attribution`: a list of {method, points}, `points` mapping a lever to index points (a number, or an
    interval {value, low, high}), or null where the method's configurations were not all measured.
    """
    entries = (facts.run.economics or {}).get("attribution")
    if not isinstance(entries, list):
        return None
    methods = [e for e in entries if isinstance(e, dict) and "method" in e]
    points = [e["points"] if isinstance(e.get("points"), dict) else {} for e in methods]
    levers = list(dict.fromkeys(name for of_method in points for name in of_method))
    if not levers:
        return None
    rows = tuple(
        Row(known_lever(name, language), tuple(_points(p.get(name), language) for p in points))
        for name in levers
    )
    heads = tuple(_method(e["method"], language) for e in methods)
    return Table(language("caption.attribution"), language("column.lever"), heads, rows)


def money_content(facts: Facts, language: Language) -> dict[str, Any]:
    """All of this file, under the names that the templates use."""
    attribution = attribution_table(facts, language)
    return {
        "cost_tables": cost_tables(facts, language),
        "cost_caveats": cost_caveats(facts),
        "economics": attribution,
        "claims": claims_table(facts, language),
    }


def _cost_cell(value: float | None, money: bool, currency: str, language: Language) -> Cell:
    return language.money_cell(value, currency) if money else language.unit_cell(value)


def _verdict(value: str, language: Language) -> str:
    names: Sequence[str] = [v.name.lower() for v in Verdict if v.value == value]
    return language(f"claim.{names[0]}") if names else clean(value)


def _method(name: object, language: Language) -> str:
    key = f"method.{str(name).lower().replace('-', '_')}"
    return language(key) if language.has(key) else clean(name)


def _points(value: Any, language: Language) -> Cell:
    if isinstance(value, Mapping):
        numbers = [value.get(k) for k in ("value", "low", "high")]
        if all(isinstance(n, int | float) for n in numbers):
            return language.unit_cell(Interval(value=numbers[0], low=numbers[1], high=numbers[2]))
        value = numbers[0]
    return language.unit_cell(value) if isinstance(value, int | float) else Cell()
