"""An artefact in tables: what `inferoptim build` and `inferoptim inspect` print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from inferoptim.cli.money import Table, emit

if TYPE_CHECKING:
    from inferoptim.build.artefact import Artefact, Benchmark, Tuning
    from inferoptim.records.schema import Interval


def print_artefact(artefact: Artefact, folder: Path, *, json: bool, verified: bool = True) -> None:
    """On standard output; `verified`: whether the files' digests were checked."""
    from inferoptim.units import NOT_MEASURED, format_bytes

    memory, quality = artefact.memory, artefact.quality
    rows: list[tuple[str, str]] = [
        ("source", f"{artefact.source.model} ({artefact.source.revision}, {artefact.source.parameters:,} parameters)"),
        ("recipe", artefact.recipe.describe()),
        ("calibration", "none" if artefact.calibration is None else f"{artefact.calibration.tokens} tokens, {artefact.calibration.source}"),
        ("tensors on disk", f"{format_bytes(memory.tensors_bytes)}; arithmetic says {format_bytes(memory.predicted_tensors_bytes)}; source {format_bytes(memory.source_tensors_bytes)}"),
        ("weights in memory", format_bytes(memory.resident_bytes)),
        ("goal", _goal(artefact)),
        *([("asked for", ", ".join(f"{k}={v}" for k, v in artefact.limits.items()))] if artefact.limits else []),
        ("engine settings", ", ".join(f"{k}={v}" for k, v in artefact.engine.items()) or "defaults"),
        *([("built in", ", ".join(f"{k} {v:.1f} s" for k, v in artefact.built_in_s.items()))] if artefact.built_in_s else []),
        ("files", f"{len(artefact.files)}, {'every SHA-256 checked' if verified else 'digests not checked'}"),
    ]  # fmt: skip
    tables = [Table(f"Artefact {folder}", ("", ""), rows)]
    if quality is None:
        rows.append(("quality", NOT_MEASURED))
    else:
        increase = quality.perplexity_ratio
        tables.append(
            Table(
                f"Quality against the source: {quality.texts}, {quality.tokens} tokens",
                ("", "value", "95 % interval"),
                [
                    ("perplexity", *_percent(increase, less=1.0)),
                    ("top-1 agreement", *_percent(quality.top1_agreement)),
                    ("top-5 overlap", *_percent(quality.top5_overlap)),
                    ("KL divergence, nats", f"{quality.kl_nats.value:.4f}", f"{quality.kl_nats.low:.4f} … {quality.kl_nats.high:.4f}"),
                    ("smallest detectable increase of perplexity", f"{quality.detectable_perplexity_increase:.2%}", ""),
                ],
            )
        )  # fmt: skip
    if artefact.benchmark is None:
        rows.append(("speed", NOT_MEASURED))
    else:
        tables.append(_speed(artefact.benchmark))
    if artefact.tuning is not None:
        tables.append(_tuning(artefact.tuning))
    if artefact.trade_off:
        tables += [_where_from(artefact), _trade_off(artefact)]
    tables.append(_worst_layers(artefact))
    kept = [f"{layer.layer}.{product}" for layer in artefact.layers for product in layer.kept]
    notes = list(artefact.warnings)
    if kept:
        notes.append(f"left in {artefact.source.dtype}: {', '.join(kept)}")
    emit(artefact.model_dump(mode="json"), tables, json=json, csv=False, notes=notes)


def _goal(artefact: Artefact) -> str:
    """The recipe's goal beside what the proof measured."""
    recipe, quality = artefact.recipe, artefact.quality
    if recipe.max_kl is None:
        return "none"
    seen = "not measured" if quality is None else f"{quality.kl_nats.value:.4f}"
    return f"KL at most {recipe.max_kl:g} nats (the proof saw {seen})"


def _speed(benchmark: Benchmark) -> Table:
    rows = [
        (row.configuration, row.workload, f"{rate.value:.1f}", f"{rate.low:.1f} … {rate.high:.1f}")
        for row in benchmark.rows
        for rate in (row.output_tokens_per_s,)
    ]
    where = benchmark.machine.get("device", "")
    where = benchmark.machine.get("processor", where) if where == "cpu" else where
    title = f"Output tokens/s, measured by {benchmark.measured_by} on {where}"
    return Table(title, ("configuration", "workload", "value", "95 % interval"), rows)


def _tuning(tuning: Tuning) -> Table:
    """What the tuner tried and what it kept."""
    rows = []
    for trial in tuning.trials:
        verdict = "kept" if trial.get("kept") else ""
        if "time_ratio" in trial:
            name, value = next(iter(trial.items()))
            gain = f"{trial['time_ratio'] - 1:+.1%} ({trial['low'] - 1:+.1%} … {trial['high'] - 1:+.1%}), {trial['rounds']} rounds"
            rows.append((f"{name}={value}", trial["measured"], f"time {gain}", verdict))
        elif "output_tokens_per_s" in trial:
            settings = {n: v for n, v in trial.items() if n not in ("output_tokens_per_s", "kept")}
            what = ", ".join(f"{n}={v}" for n, v in settings.items()) or "defaults"
            rows.append(
                (what, "runs of the engine", f"{trial['output_tokens_per_s']:.1f} output tokens/s", verdict)
            )
        else:
            rows.append((str(trial["not_searched"]), "", f"not searched: {trial['why']}", ""))
    kept = ", ".join(f"{n}={v}" for n, v in tuning.settings.items()) or "the defaults"
    return Table(
        f"Tuned in {tuning.spent_s:.0f} s, keeping {kept}", ("tried", "measured by", "seen", ""), rows
    )


def _trade_off(artefact: Artefact) -> Table:
    if artefact.trade_off[0].kl_nats is not None:
        return _frontier(artefact)
    total = artefact.trade_off[0].kl_nats_left or 1.0
    rows = [
        (f"{t.share:.0%}", str(t.products), f"{t.kl_nats_left:.4f}", f"{t.kl_nats_left / total:.0%}")
        for t in artefact.trade_off
    ]
    return Table(
        f"What leaving the most sensitive products in {artefact.source.dtype} would leave (--keep-share), each rounded to nearest alone",
        ("share of linear weights", "products", "estimated KL, nats", ""),
        rows,
    )


def _frontier(artefact: Artefact) -> Table:
    """What was measured of each share, and which one was taken."""
    from inferoptim.units import format_bytes

    heads = len({t.head_rounded for t in artefact.trade_off}) > 1
    rows = []
    for t in artefact.trade_off:
        if t.kl_nats is None or t.top1_agreement is None or t.perplexity_ratio is None:
            continue
        head = (", head int8" if t.head_rounded else ", head kept") if heads else ""
        rows.append(
            (
                f"{t.share:.0%}{head}",
                f"{t.kl_nats.value:.4f} ({t.kl_nats.low:.4f} … {t.kl_nats.high:.4f})",
                f"{t.top1_agreement.value:.1%}",
                f"{t.perplexity_ratio.value - 1:+.1%} ({t.perplexity_ratio.low - 1:+.1%} … {t.perplexity_ratio.high - 1:+.1%})",
                format_bytes(t.tensors_bytes or 0),
                format_bytes(t.read_bytes or 0),
                "chosen" if t.chosen else "",
            )
        )
    columns = ("kept", "KL, nats", "top-1", "perplexity", "on disk", "read a token", "")
    title = f"The trade-off, measured on held-out calibration texts: share of the linear weights left in {artefact.source.dtype}"
    return Table(title, columns, rows)


def _where_from(artefact: Artefact) -> Table:
    """Estimated KL by product, all layers together."""
    names = dict.fromkeys(name for layer in artefact.layers for name in layer.sensitivity)
    rows = []
    for name in names:
        of_layers = [layer.sensitivity[name] for layer in artefact.layers]
        worst = max(artefact.layers, key=lambda layer: layer.sensitivity[name].kl_nats)
        rows.append(
            (
                name,
                f"{sum(s.inputs_kl_nats for s in of_layers):.4f}",
                f"{sum(s.weights_kl_nats for s in of_layers):.4f}",
                f"{sum(s.kl_nats for s in of_layers):.4f}",
                f"layer {worst.layer}: {worst.sensitivity[name].kl_nats:.4f}",
            )
        )
    columns = ("product", "inputs rounded", "weights rounded", "both", "most sensitive")
    return Table("Where the loss comes from: estimated KL, nats, layers added up", columns, rows)


def _worst_layers(artefact: Artefact) -> Table:
    products = sorted(
        (
            (error, layer.layer, product)
            for layer in artefact.layers
            for product, error in layer.products.items()
        ),
        reverse=True,
    )
    rows = [(f"layer {layer} {product}", f"{error:.2%}") for error, layer, product in products[:5]]
    return Table(
        "Largest relative errors of a product's output on the calibration inputs", ("", "error"), rows
    )


def _percent(interval: Interval, less: float = 0.0) -> tuple[str, str]:
    value, low, high = (x - less for x in (interval.value, interval.low, interval.high))
    sign = "+" if less else ""
    return f"{value:{sign}.2%}", f"{low:{sign}.2%} … {high:{sign}.2%}"
