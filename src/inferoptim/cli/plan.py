"""``inferoptim plan``: sizing. Sub-commands live in their own files and are gathered here."""

from __future__ import annotations

import typer

from inferoptim.cli.plan_kv import kv

plan = typer.Typer(
    help="Memory of a model and its KV-cache, and what fits on which card.",
    no_args_is_help=True,
    add_completion=False,
)


@plan.callback()
def _group() -> None:
    """Memory of a model and its KV-cache, and what fits on which card."""


plan.command("kv")(kv)
