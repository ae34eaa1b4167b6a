"""``inferoptim plan kv``: bytes per token of a model's KV-cache, and what fits on which card."""

from __future__ import annotations

from typing import Annotated

import typer

from inferoptim.cli.money import Csv, Json, Table, emit
from inferoptim.errors import ConfigError


def kv(
    model: Annotated[str, typer.Argument(help="Known name, alias, Hub id, local folder or config.json.")],
    card: Annotated[
        list[str] | None,
        typer.Option("--card", help="GPU, repeatable; default: every card with published peaks."),
    ] = None,
    context: Annotated[int, typer.Option("--context", help="Prompt + output tokens of one sequence.")] = 4096,
    batch: Annotated[int, typer.Option("--batch", help="Sequences at once.")] = 1,
    weights: Annotated[str, typer.Option("--weights", help="Precision of the weights.")] = "bf16",
    cache: Annotated[str, typer.Option("--kv", help="Precision of the KV-cache.")] = "bf16",
    gpus: Annotated[int, typer.Option("--gpus", help="Tensor-parallel GPUs.")] = 1,
    usable: Annotated[
        float,
        typer.Option(
            "--usable", help="Share of memory for weights and KV; the rest is activations and runtime."
        ),
    ] = 0.9,
    parameters: Annotated[
        float | None,
        typer.Option(
            "--parameters", help="All weights, where the config alone does not give them (experts)."
        ),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use only what is on this machine.")] = False,
    json: Json = False,
    csv: Csv = False,
) -> None:
    """KV-cache per token (MHA, GQA, MQA, MLA, sliding windows) from a model's own config; what fits on which card."""
    from inferoptim.economics.checks import positive
    from inferoptim.hardware.peaks import DEVICES, device_peaks
    from inferoptim.planner.kv import (
        element_bytes,
        fit,
        kv_scale_bytes,
        model_facts,
        weight_bytes_of,
    )

    facts = model_facts(model, offline=offline)
    size, scale = element_bytes(cache), kv_scale_bytes(cache)
    weight_bytes: float
    if parameters is not None:
        weight_bytes, origin = positive("--parameters", parameters) * element_bytes(weights), "stated"
    else:
        found = weight_bytes_of(facts, weights)
        if found is None:
            raise ConfigError(
                f"{model}: its config alone does not give the number of weights; state --parameters"
            )
        weight_bytes, origin = found, facts.source
    cards = [device_peaks(name) for name in card] if card else list(DEVICES)
    fits = [
        fit(facts.kv, weight_bytes, device, context=context, batch=batch, kv_precision=cache, gpus=gpus, usable=usable,
            max_position=facts.max_position)
        for device in cards
    ]  # fmt: skip
    token = facts.kv.bytes_per_token(size, scale)
    sequence = facts.kv.bytes_of_sequence(context, size, scale)
    windowed = sum(window is not None for window in facts.kv.windows)
    about = [
        [
            "attention",
            facts.kv.kind
            + (f", {windowed} of {facts.kv.layers} layers see only a window" if windowed else ""),
        ],
        ["KV-cache per token", f"{token:,.0f} B ({cache}" + (", scales included)" if scale else ")")],
        [f"one sequence of {context:,} tokens", f"{sequence / 1e9:.4g} GB ({sequence / 2**30:.4g} GiB)"],
        [f"{batch} × {context:,} tokens", f"{batch * sequence / 1e9:.4g} GB"],
        ["weights", f"{weight_bytes / 1e9:.4g} GB ({weights}; {origin})"],
    ]
    rows = [
        [f.device, f.usable_bytes / 1e9, max(f.kv_room_bytes, 0.0) / 1e9, f.fits, f.max_batch, f.max_context]
        for f in fits
    ]
    columns = [
        "card",
        "usable GB",
        "left for KV, GB",
        f"{batch} × {context:,} fits",
        f"most × {context:,}",
        f"longest × {batch}",
    ]
    notes = [f"{usable:.0%} of each card's memory is used; {gpus} GPU{'s' if gpus > 1 else ''} each"]
    if facts.max_position:
        notes.append(f"the model's longest context is {facts.max_position:,} tokens")
    if windowed:
        notes.append(
            "windowed layers are counted at their window; an engine that keeps every token needs more"
        )
    result = {
        "model": facts.name,
        "attention": facts.kv.kind,
        "windowed_layers": windowed,
        "kv_bytes_per_token": token,
        "kv_bytes_per_sequence": sequence,
        "weight_bytes": weight_bytes,
        "cards": [f.as_dict() for f in fits],
    }
    fit_table = Table("What fits", columns, rows)
    emit(result, [fit_table, Table(facts.name, ["", ""], about)] if csv else [Table(facts.name, ["", ""], about), fit_table],
         json=json, csv=csv, notes=notes)  # fmt: skip
