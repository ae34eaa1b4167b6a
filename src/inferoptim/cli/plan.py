"""``inferoptim plan``: sizing. Sub-commands live in their own files and are gathered here."""

from __future__ import annotations

import typer

from inferoptim.cli.plan_kv import kv

plan = typer.Typer(
    help="How many devices, which one, for this traffic and this objective.", no_args_is_help=True
)


@plan.callback()
def _group() -> None:
    """How many devices, which one, for this traffic and this objective."""


plan.command("kv")(kv)
