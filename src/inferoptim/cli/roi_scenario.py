"""The scenario of ``inferoptim roi``: a file or a bench run, with what the options state on top."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inferoptim.cli.money import parse_assignment
from inferoptim.errors import ConfigError

if TYPE_CHECKING:
    from inferoptim.economics.scenario_file import Scenario


def scenario_of(
    what: Path | None,
    assignments: Sequence[str],
    config: str | None,
    baseline: str | None,
    workload: str | None,
    gpus: int,
    offer: str | None,
    api: str | None,
    prices: Path | None,
    rate: list[str] | None,
    currency: str | None,
) -> tuple[Scenario, list[str]]:
    """The scenario from a file or a run, with what the options state on top."""
    from inferoptim.economics.checks import whole
    from inferoptim.economics.scenario_file import build, read_scenario

    stated = dict(parse_assignment(text) for text in assignments)
    if len(stated) < len(assignments):
        raise ConfigError("--set states one input twice")
    run = what if what is not None and what.is_dir() else None
    if run is None and any(given is not None for given in (config, baseline, workload)):
        raise ConfigError(
            "--config, --baseline and --workload need the results folder of a bench: inferoptim roi results/<run>"
        )
    base = read_scenario(what) if what is not None and run is None else None
    known = set() if base is None else set(base.inputs) - set(base.assumed)
    money = (currency or (base.currency if base and base.currency else "")).upper()
    warnings: list[str] = []
    if offer is not None:
        _refuse_both("--offer", ("gpu_hour_price", "gpus_per_node"), {*stated, *known})
        money = _state_offer(stated, offer, prices, money, rate, warnings)
    elif run is not None and "gpu_hour_price" not in stated:
        money = _state_price_of_run(stated, run, whole("--gpus", gpus), money, rate)
    money = money or "EUR"
    if base is not None and currency and base.currency != money and known:
        raise ConfigError(
            f"{what}: its amounts are in {base.currency}; change them in the file to print {money}"
        )
    if api is not None:
        _refuse_both("--api", ("api_input_price", "api_cached_price", "api_output_price"), {*stated, *known})
        _state_api(stated, api, money, rate, warnings)
    if run is not None:
        from inferoptim.report.scenario_from_run import scenario_from_run

        if "factor" in stated:
            raise ConfigError("the run measures `factor`: choose its configuration with --config instead")
        return (
            scenario_from_run(
                run,
                stated,
                config=config,
                baseline=baseline,
                workload=workload,
                gpus=whole("--gpus", gpus),
                currency=money,
            ),
            warnings,
        )
    if base is None:
        return build(stated, currency=money), warnings
    if offer is not None and base.currency != money:
        raise ConfigError(
            f"{what}: its amounts are in {base.currency}, the offer in {money}: add --currency {base.currency}"
        )
    kept = {name: base.inputs[name] for name in known if not (name == "factor" and base.levers)}
    return (
        build(
            {**kept, **stated}, currency=base.currency, levers=base.levers, title=base.title, notes=base.notes
        ),
        warnings,
    )


def _refuse_both(option: str, names: Sequence[str], known: set[str]) -> None:
    twice = [name for name in names if name in known]
    if twice:
        raise ConfigError(f"{option} and {twice[0]} state the same thing: keep one")


def _state_offer(
    stated: dict[str, Any],
    offer: str,
    prices: Path | None,
    money: str,
    rate: list[str] | None,
    warnings: list[str],
) -> str:
    from inferoptim.cli.money import resolve_offer

    priced = resolve_offer(offer, prices, money or None, rate)
    stated["gpu_hour_price"] = priced.hour.total
    stated["gpus_per_node"] = priced.gpus_per_node
    warnings.extend(priced.warnings)
    warnings.append(f"price of a GPU hour: {priced.source}")
    return priced.hour.currency


def _state_price_of_run(
    stated: dict[str, Any], run: Path, gpus: int, money: str, rate: list[str] | None
) -> str:
    """The price that was stored with the run, if one was."""
    from inferoptim.economics.currency import Rates
    from inferoptim.records.reader import read_summary

    summary = read_summary(run)
    if not summary.price_per_hour:
        return money
    money = money or summary.currency
    stated["gpu_hour_price"] = (
        Rates.parse(rate or ()).convert(summary.price_per_hour, summary.currency, money) / gpus
    )
    stated.setdefault("gpus_per_node", gpus)
    return money


def _state_api(
    stated: dict[str, Any], model: str, money: str, rate: list[str] | None, warnings: list[str]
) -> None:
    from inferoptim.economics.api_prices import CURRENCY, api_price
    from inferoptim.economics.currency import Rates

    price = api_price(model)
    factor = Rates.parse(rate or ()).factor(CURRENCY, money)
    stated["api_input_price"] = price.input * factor
    stated["api_output_price"] = price.output * factor
    # Where the list states no cached rate, a cached token costs the full one.
    stated["api_cached_price"] = (price.input if price.cached_input is None else price.cached_input) * factor
    warnings.append(f"API: {price.provider}/{price.model}, {price.source}")
