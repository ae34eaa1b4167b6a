"""``inferoptim roi``: what a change is worth, with its interval, what matters most, and the HTML simulator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inferoptim.cli.money import Csv, Currency, Json, Prices, Rate
from inferoptim.cli.roi_figures import NEEDED, list_inputs, print_figures
from inferoptim.cli.roi_scenario import scenario_of
from inferoptim.errors import ConfigError

DRIVEN = ("npv", "per_million_output_after", "saving_per_year_realisable", "payback_months")
FROM_RUN, PRICE, OUT = "From a bench run", "Prices", "Output"


def roi(
    what: Annotated[
        Path | None, typer.Argument(help="A scenario file (TOML), or the results folder of a bench.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="An input: name=value or name=low:mode:high[:measured]; repeatable. --inputs lists them.",
        ),
    ] = None,
    inputs: Annotated[
        bool, typer.Option("--inputs", help="List every input with its bounds and default.")
    ] = False,
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            help="After the change; default: the fastest that passed its gate.",
            rich_help_panel=FROM_RUN,
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline", help="Before the change; default: the run's baseline.", rich_help_panel=FROM_RUN
        ),
    ] = None,
    workload: Annotated[
        str | None, typer.Option("--workload", help="Default: the busiest.", rich_help_panel=FROM_RUN)
    ] = None,
    gpus: Annotated[
        int,
        typer.Option(
            "--gpus", help="GPUs (or machines) that did the work together.", rich_help_panel=FROM_RUN
        ),
    ] = 1,
    offer: Annotated[
        str | None, typer.Option("--offer", help="Price and node of this offer.", rich_help_panel=PRICE)
    ] = None,
    api: Annotated[
        str | None,
        typer.Option(
            "--api",
            help="Break-even against this hosted model, at list price (provider/name).",
            rich_help_panel=PRICE,
        ),
    ] = None,
    prices: Prices = None,
    rate: Rate = None,
    currency: Currency = None,
    by: Annotated[
        str,
        typer.Option("--by", help=f"Figure that the tornado is about: {', '.join(DRIVEN)}, or any other."),
    ] = "npv",
    draws: Annotated[int, typer.Option("--draws", help="Of the Monte-Carlo.", rich_help_panel=OUT)] = 10_000,
    seed: Annotated[int, typer.Option("--seed", rich_help_panel=OUT)] = 0,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Write the simulator: one file, no network.", rich_help_panel=OUT),
    ] = None,
    lang: Annotated[
        str,
        typer.Option("--lang", help="Language in which the simulator opens: en, fr.", rich_help_panel=OUT),
    ] = "en",
    json: Json = False,
    csv: Csv = False,
) -> None:
    """Return of a change: saving (in theory, and realisable), payback, NPV, break-even; each with its interval.

    Example: inferoptim roi results/my-run --offer nebius-h100 --set requests_per_day=2e5:3e5:5e5
    --set utilisation=0.4:0.5:0.7 --set migration_cost=20000 --html roi.html
    """
    from inferoptim.economics.scenario import OUTPUTS

    if inputs:
        list_inputs(json=json, csv=csv)
        return
    if by not in OUTPUTS:
        raise ConfigError(f"--by {by!r}: one of {', '.join(OUTPUTS)}")
    scenario, warnings = scenario_of(
        what, set_ or [], config, baseline, workload, gpus, offer, api, prices, rate, currency
    )
    if html is not None:
        from inferoptim.economics.simulator import simulator_page
        from inferoptim.records.writer import write_atomic

        write_atomic(html, simulator_page(scenario, lang))
        typer.echo(f"wrote {html}", err=True)
    missing = [name for name in NEEDED if name in scenario.assumed]
    if missing:
        if html is not None and not (json or csv):
            typer.echo(
                f"no figures here: not stated: {', '.join(missing)}; the page marks its start positions"
            )
            return
        raise ConfigError(
            f"not stated: {', '.join(missing)}: give --set name=value for each, a scenario file or a bench run "
            "(or only --html, to move them in the simulator)"
        )
    from inferoptim.economics.scenario_file import drivers, spreads

    print_figures(
        scenario, spreads(scenario, draws, seed), drivers(scenario, by), by, warnings, json=json, csv=csv
    )
