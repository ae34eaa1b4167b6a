"""``inferoptim deploy``: the files of a deployment, made from stated inputs and checked before they are written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inferoptim.errors import ConfigError


def deploy(
    model: Annotated[
        str, typer.Argument(help="What the server loads: alias, Hub id, or artefact's path in the image.")
    ] = "smollm2-135m",
    out: Annotated[Path, typer.Option("--out", help="Folder to write into.")] = Path("deployment"),
    part: Annotated[
        list[str] | None,
        typer.Option("--part", help="Only monitoring, compose, kserve or ray; repeatable. Default: all."),
    ] = None,
    image: Annotated[
        str, typer.Option("--image", help="Container image of the server.")
    ] = "inferoptim:local",
    engine: Annotated[
        list[str] | None,
        typer.Option("--engine", "-e", metavar="FIELD=VALUE", help="Engine setting; repeatable."),
    ] = None,
    gpus: Annotated[int, typer.Option("--gpus", help="GPUs of one replica.")] = 0,
    usd_per_hour: Annotated[
        float | None, typer.Option("--usd-per-hour", help="Price of one replica.")
    ] = None,
    max_queue: Annotated[
        int, typer.Option("--max-queue", help="Sequences that may wait in one replica.")
    ] = 128,
    ttft: Annotated[
        float, typer.Option("--slo-ttft", help="Objective: first token within so many seconds.")
    ] = 2.0,
    e2e: Annotated[
        float, typer.Option("--slo-e2e", help="Objective: whole answer within so many seconds.")
    ] = 30.0,
    objective: Annotated[
        float, typer.Option("--objective", help="Share of requests that must meet them.")
    ] = 0.99,
    budget: Annotated[
        float, typer.Option("--budget", help="Alert above so many USD per million output tokens.")
    ] = 10.0,
    runbooks: Annotated[
        str, typer.Option("--runbooks", help="Address that the alerts' runbook links start with.")
    ] = "docs/runbooks",
    name: Annotated[str, typer.Option("--name", help="Of the KServe service.")] = "inferoptim",
    namespace: Annotated[str, typer.Option("--namespace")] = "default",
    min_replicas: Annotated[int, typer.Option("--min-replicas")] = 1,
    max_replicas: Annotated[int, typer.Option("--max-replicas")] = 4,
    cpu: Annotated[str, typer.Option("--cpu", help="CPU of one replica, e.g. 4.")] = "4",
    memory: Annotated[str, typer.Option("--memory", help="Memory of one replica, e.g. 16Gi.")] = "16Gi",
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what was written and checked as JSON.")] = False,
) -> None:
    """Write Compose, KServe, Ray Serve, Prometheus rules and Grafana dashboards, checked by the tools installed here."""
    import json as json_module

    from inferoptim.deploy.compose import ServerInputs
    from inferoptim.deploy.rules import RuleInputs
    from inferoptim.deploy.write import (
        PARTS,
        DeployInputs,
        check_syntax,
        check_with_tools,
        deployment_files,
        write_files,
    )

    unknown = [p for p in part or () if p not in PARTS]
    if unknown:
        raise ConfigError(f"--part {unknown[0]}: there is {', '.join(PARTS)}")
    inputs = DeployInputs(
        server=ServerInputs(
            model, image, usd_per_hour, max_queue=max_queue, engine=tuple(engine or ()), gpus=gpus
        ),
        rules=RuleInputs(ttft, e2e, objective, budget, runbooks=runbooks),
        parts=tuple(p for p in PARTS if not part or p in part),
        name=name,
        namespace=namespace,
        min_replicas=min_replicas,
        max_replicas=max_replicas,
        cpu=cpu,
        memory=memory,
    )
    files = deployment_files(inputs)
    check_syntax(files)
    written = write_files(out, files, force=force)
    checks = check_with_tools(out)
    if json:
        typer.echo(json_module.dumps({"files": [str(p) for p in written], "checks": checks}, indent=2))
        return
    for path in written:
        typer.echo(f"written: {path}")
    for what, said in checks.items():
        typer.echo(f"checked: {what}: {said}")
