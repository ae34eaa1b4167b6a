"""`inferoptim doctor`: is this machine ready, and what to do about each gap."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from inferoptim.cli.doctor_probes import PROBES, Finding, Status
from inferoptim.units import NOT_MEASURED, format_bytes

if TYPE_CHECKING:
    from inferoptim.hardware import MachineCeilings

_MARKS: dict[Status, str] = {
    "ok": "[green]ok[/green]",
    "gap": "[yellow]gap[/yellow]",
    "missing": "[red]MISSING[/red]",
    "info": "[dim]-[/dim]",
}


def doctor(
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Also measure what this machine can do (about 10 s; kept for later)."),
    ] = False,
    remeasure: Annotated[
        bool, typer.Option("--remeasure", help="Measure again, forgetting what was measured before.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Is this machine ready? What is missing, and what to do about it.

    Exits with 1 only if something required is missing; a gap costs speed or a feature, and says which.
    """
    from rich.console import Console

    errors = Console(stderr=True)
    findings: list[Finding] = []
    status = nullcontext() if as_json else errors.status("Looking at this machine")
    with status as spinner:
        for probe in PROBES:
            findings += _safely(probe)
        ready = not any(finding.status == "missing" for finding in findings)
        measured: dict[str, MachineCeilings | None] = {}
        if ready:  # nothing can be measured without torch
            measured = _ceilings(
                measure, remeasure, (lambda step: None) if spinner is None else spinner.update
            )
        for device, result in measured.items():
            findings += _describe_ceilings(device, result)
    if as_json:
        report = {
            "ready": ready,
            "findings": [asdict(finding) for finding in findings],
            "ceilings": {device: result and asdict(result) for device, result in measured.items()},
        }
        typer.echo(json.dumps(report, indent=2))
    else:
        _print(findings, ready)
    if not ready:
        raise typer.Exit(1)


def _print(findings: list[Finding], ready: bool) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for finding in findings:
        text = escape(finding.value)
        if finding.advice:
            text += f"\n[dim]→ {escape(finding.advice)}[/dim]"
        table.add_row(_MARKS[finding.status], finding.name, text)
    console.print(table)
    gaps = sum(finding.status == "gap" for finding in findings)
    if not ready:
        console.print("\n[red]Not ready:[/red] see the lines marked MISSING.")
    else:
        console.print(f"\nReady{f', with {gaps} gap(s)' if gaps else ''}. Next: inferoptim bench --quick")


def _safely(probe: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """A probe that fails is itself a finding: one broken driver must not hide the other lines."""
    found: list[Finding] = []
    try:
        found.extend(probe())
    except Exception as error:
        name = probe.__name__.removeprefix("_").replace("_", " ")
        found.append(Finding(name, f"could not be read: {type(error).__name__}: {error}", "gap"))
    return found


def _ceilings(
    measure: bool, remeasure: bool, on_step: Callable[[str], None]
) -> dict[str, MachineCeilings | None]:
    """Measured ceilings by device: from the cache, or new ones if asked for."""
    import torch

    from inferoptim.hardware import cached_ceilings, ceilings
    from inferoptim.hardware.ceilings import Device

    devices: list[Device] = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    if not (measure or remeasure):
        return {device: cached_ceilings(device) for device in devices}
    return {
        device: ceilings(device, remeasure=remeasure, on_step=lambda step: on_step(f"Measuring: {step}"))
        for device in devices
    }


def _describe_ceilings(device: str, result: MachineCeilings | None) -> Iterator[Finding]:
    from inferoptim.hardware.ceilings import BUSY

    name = f"Ceilings ({device})"
    if result is None:
        yield Finding(
            name, NOT_MEASURED, "info", "inferoptim doctor --measure (about 10 s); bench measures them too"
        )
        return
    parts = [f"memory read {_giga(result.memory_read_bytes_per_s)}B/s"]
    if result.cached_read_bytes_per_s is not None:
        parts.append(
            f"cache read {_giga(result.cached_read_bytes_per_s)}B/s ({format_bytes(result.cached_buffer_bytes)})"
        )
    parts += [
        f"{dtype} {rate / 1e12:.3g} T{'OP' if dtype == 'int8' else 'FLOP'}/s"
        for dtype, rate in result.gemm_flops_per_s.items()
    ]
    when = f"{', '.join(parts)}; measured {result.measured_at}"
    advice = "; ".join(result.notes) or None
    if (result.others_busy or 0) > BUSY:
        busy = (
            f"other work used {result.others_busy:.0%} of the CPU meanwhile: measure again on a quiet machine"
        )
        yield Finding(name, when, "gap", "; ".join(filter(None, (busy, advice))))
    else:
        yield Finding(name, when, "ok", advice)


def _giga(rate: float | None) -> str:
    return NOT_MEASURED if rate is None else f"{rate / 1e9:.3g} G"
