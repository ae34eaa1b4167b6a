"""All layers quantised one after the other, each written before the next is read; with a goal, what to leave is chosen behind them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from inferoptim.build.arithmetic import predicted_tensor_bytes, read_bytes
from inferoptim.build.artefact import TradeOff
from inferoptim.build.calibration import CalibrationSet
from inferoptim.build.frontier import Frontier, Kept, Point, aim, choose, shares_around
from inferoptim.build.quantise import ProductReport, QuantisedLayer, quantise_layer
from inferoptim.build.recipe import Recipe
from inferoptim.build.sensitivity import Sensitivity, estimated, measure, most_sensitive
from inferoptim.build.source import PRODUCTS, SourceModel
from inferoptim.build.stopwatch import Stopwatch
from inferoptim.build.writer import ShardWriter
from inferoptim.engine.resident import return_freed_memory

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Quantised:
    """What became of the layers.

    Attributes:
        recipe: with what was chosen.
        layers: without their tensors, which are on disk.
        tensors_bytes: written.
        sensitivity: empty where it was not measured.
        warnings: for the user.
    """

    recipe: Recipe
    layers: list[QuantisedLayer]
    tensors_bytes: int
    sensitivity: list[Sensitivity]
    trade_off: tuple[TradeOff, ...]
    warnings: tuple[str, ...]

    @property
    def reports(self) -> list[ProductReport]:
        return [report for layer in self.layers for report in layer.reports]


def quantise_model(
    source: SourceModel,
    recipe: Recipe,
    calibration: CalibrationSet,
    dtype: torch.dtype,
    folder: Path,
    watch: Stopwatch,
    progress: Progress | None = None,
) -> Quantised:
    """Measure sensitivity where the recipe asks for it, quantise, choose, and write the tensors into `folder`.

    Args:
        dtype: of what stays dense.
    """
    sensitivity: list[Sensitivity] = []
    if recipe.keep_share is not None or recipe.has_goal:
        with watch.part("sensitivity"):
            sensitivity = measure(source, recipe, dtype, calibration.tokens, progress)
    writer = ShardWriter(folder)
    writer.add("model.embed_tokens.weight", source.tensor("model.embed_tokens.weight").to(dtype))
    warnings: list[str] = []
    if recipe.has_goal and recipe.keep_share is None:
        # compensation fits a product to what the products before it give: so it has to know about which of them will be left
        aimed = aim(sensitivity, recipe)
        choices = {share: most_sensitive(sensitivity, share) for share in shares_around(aimed)}
        held_out = calibration.held_out
        if held_out is None:
            held_out = calibration.tokens[:1]
            warnings.append(
                "too few calibration texts to hold some out: what to leave was chosen on calibration tokens"
            )
        frontier = Frontier(source, recipe, held_out, choices)
        spare = folder / "layers"
        spare.mkdir()
        layers = _layers(
            source, recipe, calibration, dtype, choices[aimed], frontier, spare, None, watch, progress
        )
        with watch.part("frontier"):
            return_freed_memory()  # of quantising; two heads in float32 come now
            points = frontier.points()
        rows = [_measured(source, recipe, dtype, layers, point, sensitivity) for point in points]
        best, met = choose(points, recipe, [row.read_bytes or 0 for row in rows])
        rows = [
            row.model_copy(update={"chosen": point is best}) for row, point in zip(rows, points, strict=True)
        ]
        if not met:
            warnings.append(
                f"no choice up to {max(choices):.0%} of the linear weights met the goal on the held-out tokens; the nearest was taken"
            )
        with watch.part("writing"):
            layers = [_settled(layer, spare, writer, best) for layer in layers]
            shutil.rmtree(spare)
        recipe = recipe.model_copy(update={"keep_share": best.share, "quantise_head": best.head_rounded})
        trade_off = tuple(rows)
    else:
        keep = most_sensitive(sensitivity, recipe.keep_share or 0.0)
        layers = _layers(source, recipe, calibration, dtype, keep, None, None, writer, watch, progress)
        trade_off = estimated(sensitivity)
    writer.add("model.norm.weight", source.tensor("model.norm.weight").to(dtype))
    if not source.spec.tied_embeddings:
        writer.add("lm_head.weight", source.head().to(dtype))
    with watch.part("writing"):
        writer.close()
    return Quantised(recipe, layers, writer.total_bytes, sensitivity, trade_off, tuple(warnings))


def _layers(
    source: SourceModel,
    recipe: Recipe,
    calibration: CalibrationSet,
    dtype: torch.dtype,
    keep: Kept,
    frontier: Frontier | None,
    spare: Path | None,
    writer: ShardWriter | None,
    watch: Stopwatch,
    progress: Progress | None,
) -> list[QuantisedLayer]:
    """Into `writer`; or, with a frontier, into `spare` with the dense tensors of what may be left beside the quantised ones."""
    exact = source.embed(calibration.tokens)
    quantised, layers = exact, []
    for index in range(source.spec.num_layers):
        if progress:
            progress("quantising layers", index, source.spec.num_layers)
        with watch.part("quantising"):
            layer, work, exact, quantised = quantise_layer(
                source,
                source.layer(index),
                recipe,
                dtype,
                exact,
                quantised,
                keep,
                undecided=frontier is not None,
            )
        if frontier is not None and spare is not None:
            with watch.part("frontier"):
                frontier.follow(work.layer, work.simulated)
            dense = {
                f"dense:{m}.weight": work.layer.tensors[f"{m}.weight"].to(dtype)
                for product, modules in PRODUCTS.items()
                if frontier.may_keep(index, product)
                for m in modules
            }
            with watch.part("writing"):
                save_file(layer.tensors | dense, spare / f"{index}.safetensors")
        elif writer is not None:
            _write(writer, layer)
        layer.tensors = {}
        layers.append(layer)
    return layers


def _write(writer: ShardWriter, layer: QuantisedLayer) -> None:
    for name, tensor in sorted(layer.tensors.items()):
        writer.add(f"model.layers.{layer.index}.{name}", tensor)
    layer.tensors = {}


def _settled(layer: QuantisedLayer, spare: Path, writer: ShardWriter, chosen: Point) -> QuantisedLayer:
    """A layer with the products that were chosen in the model's type, written."""
    path = spare / f"{layer.index}.safetensors"
    tensors = load_file(path)
    path.unlink()
    dense = {name.removeprefix("dense:"): t for name, t in tensors.items() if name.startswith("dense:")}
    tensors = {name: t for name, t in tensors.items() if not name.startswith("dense:")}
    reports = []
    for report in layer.reports:
        kept = (layer.index, report.product) in chosen.kept
        reports.append(replace(report, kept=kept))
        for module in PRODUCTS[report.product] if kept else ():
            for name in [n for n in tensors if n.startswith(f"{module}.") and not n.endswith(".bias")]:
                del tensors[name]
            tensors[f"{module}.weight"] = dense[f"{module}.weight"]
    settled = QuantisedLayer(layer.index, tensors, reports, chosen.drifts[layer.index])
    _write(writer, settled)
    return settled


def _measured(
    source: SourceModel,
    recipe: Recipe,
    dtype: torch.dtype,
    layers: list[QuantisedLayer],
    point: Point,
    sensitivity: list[Sensitivity],
) -> TradeOff:
    reports = [replace(r, kept=(r.layer, r.product) in point.kept) for layer in layers for r in layer.reports]
    disk = predicted_tensor_bytes(source.spec, recipe, dtype, reports)
    left = sum(s.kl for s in sensitivity if (s.layer, s.product) not in point.kept)
    return TradeOff(
        share=point.share,
        products=len(point.kept),
        kl_nats_left=float(f"{left:.6g}"),
        head_rounded=point.head_rounded,
        tensors_bytes=disk,
        read_bytes=read_bytes(source.spec, dtype, disk, head_rounded=point.head_rounded),
        kl_nats=point.kl_nats,
        top1_agreement=point.top1_agreement,
        perplexity_ratio=point.perplexity_ratio,
    )
