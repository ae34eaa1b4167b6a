"""Convert → calibrate → quantise → tune → prove → publish: `build_artefact` runs it, whole or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from inferoptim import __version__
from inferoptim.build import artefact as parts
from inferoptim.build.arithmetic import predicted_tensor_bytes, source_tensor_bytes, streaming_bytes
from inferoptim.build.calibration import calibration_set, language_warning
from inferoptim.build.frontier import HELD_OUT
from inferoptim.build.prove import Runnable, prove
from inferoptim.build.quantise import ProductReport, QuantisedLayer
from inferoptim.build.quantization_config import compressed_tensors_config, modelopt_config
from inferoptim.build.recipe import Recipe
from inferoptim.build.sensitivity import Sensitivity
from inferoptim.build.source import PRODUCTS, SourceModel
from inferoptim.build.speed import measure_speed
from inferoptim.build.stopwatch import Stopwatch
from inferoptim.build.stream import quantise_model
from inferoptim.build.tune import TuneRequest, tune
from inferoptim.config import EngineConfig
from inferoptim.engine.loading import choose_device
from inferoptim.errors import ConfigError, UnsupportedError
from inferoptim.hardware.cpu import memory_limit_bytes
from inferoptim.models.cache import disk_errors, record_files, require_room
from inferoptim.models.hub import ModelFiles
from inferoptim.models.sources import ARTEFACT_NAME, model_file_names
from inferoptim.models.spec import ModelSpec
from inferoptim.models.tokenizer import load_tokenizer
from inferoptim.units import format_bytes

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LAYOUT_VERSION = "0.15.0"  # of compressed-tensors, whose fields are written
_COPIED = (
    *("generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "chat_template.jinja"),
)
Progress = Callable[[str, int, int], None]
Texts = Mapping[str, Sequence[str]]  # language → texts


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What to build.

    Attributes:
        files: the model.
        out: folder to make; must not exist, unless `force`.
        calibration: texts (or their tokens) that scales are taken from, and where they came from in words.
        proof: texts for the proof, by language; must not be among the calibration texts.
        limits: max_batch_size, max_input_len, max_output_len, tensor_parallel; what the artefact will be asked for.
        tune_budget_s: 0 = no tuning.
        speed_runs: timed runs of the artefact; 0: speed is not measured.
        export: 'hf' (compressed-tensors) or 'modelopt'.
        reproducible: no time stamp, no machine-dependent parts (tuning, speed), so that two builds give the same bytes.
    """

    files: ModelFiles
    out: Path
    recipe: Recipe
    calibration: Sequence[str] | Sequence[Sequence[int]]
    calibration_source: str
    proof: Texts
    proof_source: str
    limits: Mapping[str, int] = field(default_factory=dict)
    calibration_tokens: int = 4096
    tune_budget_s: float = 0.0
    speed_runs: int = 0
    export: str = "hf"
    reproducible: bool = False
    force: bool = False


def build_artefact(request: BuildRequest, progress: Progress | None = None) -> parts.Artefact:
    """Build and publish; on any error or interruption nothing is left of it, and an older artefact stays as it was.

    Raises:
        ConfigError: the folder exists, or a contradiction. UnsupportedError: the model is quantised already.
        DataError: damaged weights or too little text. CapacityError: no room.
    """
    out, recipe, watch = request.out, request.recipe, Stopwatch()
    if out.exists() and not request.force:
        raise ConfigError(f"{out} exists; choose another folder with --out, or replace it with --force")
    if request.force and out.exists() and not (out / ARTEFACT_NAME).is_file():
        raise ConfigError(f"{out} exists and is not an artefact; --force replaces artefacts only")
    if request.export == "modelopt":
        _check_modelopt(recipe)
    source = SourceModel(request.files.folder)
    _check_limits(source.spec, request.limits)
    dtype = _DTYPES.get(source.spec.torch_dtype, torch.bfloat16)
    tokenizer = load_tokenizer(request.files.folder)
    calibration = calibration_set(
        request.calibration,
        tokenizer,
        source=request.calibration_source,
        max_tokens=request.calibration_tokens,
        hold_out=HELD_OUT if recipe.has_goal else 0,
    )
    warnings = list(calibration.warnings)
    texts = [text if isinstance(text, str) else tokenizer.decode(text) for text in request.calibration]
    if line := language_warning(texts, dict(request.proof)):
        warnings.append(line)
    with _staging(out) as folder:
        copies = (
            2 if recipe.has_goal else 1
        )  # with a goal, what may be left lies beside its quantised self for a while
        require_room(
            out.parent, copies * source_tensor_bytes(source.spec, dtype), "choose another disk with --out"
        )
        made = quantise_model(source, recipe, calibration, dtype, folder, watch, progress)
        recipe, reports = made.recipe, made.reports
        warnings += made.warnings
        _write_settings(request, recipe, source, reports, folder)
        engine = _engine_settings(recipe, request.limits)
        with watch.part("proof"):
            quality, resident = _prove(request, folder, engine, dtype, warnings, progress)
        tuning = None
        if request.tune_budget_s > 0 and not request.reproducible:
            with watch.part("tuning"):
                tuning = tune(TuneRequest(folder, engine, request.limits, request.tune_budget_s), progress)
            engine |= tuning.settings
        benchmark = None
        if request.speed_runs > 0 and not request.reproducible:
            if progress:
                progress("speed", 0, 1)
            with watch.part("speed"):
                benchmark = measure_speed(folder, engine, request.limits, request.speed_runs)
        names = [*model_file_names(folder), *(n for n in _COPIED if (folder / n).is_file())]
        digests = {r.name: r.sha256 for r in record_files(folder, sorted(set(names)))}
        result = parts.Artefact(
            created_at=None
            if request.reproducible
            else datetime.now(timezone.utc).isoformat(timespec="seconds"),
            builder=f"inferoptim {__version__}, torch {torch.__version__}",
            source=parts.Source(
                model=request.files.name,
                revision=request.files.revision,
                fingerprint=request.files.fingerprint,
                dtype=source.spec.torch_dtype,
                parameters=_parameters(source),
            ),
            recipe=recipe,
            calibration=None
            if recipe.quantization == "none"
            else parts.Calibration(
                source=calibration.source, tokens=calibration.num_tokens, fingerprint=calibration.fingerprint
            ),
            limits=dict(request.limits),
            engine=engine,
            layers=tuple(_layer_error(layer, made.sensitivity) for layer in made.layers),
            trade_off=made.trade_off,
            memory=parts.Memory(
                tensors_bytes=made.tensors_bytes,
                predicted_tensors_bytes=predicted_tensor_bytes(source.spec, recipe, dtype, reports),
                source_tensors_bytes=source_tensor_bytes(source.spec, dtype),
                resident_bytes=resident,
            ),
            quality=quality,
            tuning=tuning,
            benchmark=benchmark,
            built_in_s={} if request.reproducible else watch.seconds(),
            warnings=tuple(warnings),
            files=digests,
        )
        (folder / ARTEFACT_NAME).write_text(result.to_json(), encoding="utf-8")
        _publish(folder, out)
    return result


def _write_settings(
    request: BuildRequest, recipe: Recipe, source: SourceModel, reports: list[ProductReport], folder: Path
) -> None:
    for name in _COPIED:
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, folder / name)
    config: dict[str, Any] = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    stated = compressed_tensors_config(recipe, source.spec, reports, _LAYOUT_VERSION)
    if request.export == "modelopt":
        ignore = ["lm_head"]
        ignore += [f"model.layers.{r.layer}.{m}" for r in reports if r.kept for m in PRODUCTS[r.product]]
        modelopt = modelopt_config(recipe, ignore)
        (folder / "hf_quant_config.json").write_text(json.dumps(modelopt, indent=2) + "\n", encoding="utf-8")
    elif stated is not None:
        config["quantization_config"] = stated
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _engine_settings(recipe: Recipe, limits: Mapping[str, int]) -> dict[str, Any]:
    """EngineConfig fields that serve the artefact within its limits."""
    settings: dict[str, Any] = {}
    if recipe.rounds_head:
        settings["quantization"] = recipe.quantization  # the output head, which the checkpoint keeps dense
    if recipe.kv_cache_dtype != "auto":
        settings["kv_quantization"] = recipe.kv_cache_dtype
    if "max_batch_size" in limits:
        settings["max_num_seqs"] = limits["max_batch_size"]
    if "max_input_len" in limits and "max_output_len" in limits:
        settings["max_model_len"] = limits["max_input_len"] + limits["max_output_len"]
    return settings


def _check_limits(spec: ModelSpec, limits: Mapping[str, int]) -> None:
    longest = limits.get("max_input_len", 0) + limits.get("max_output_len", 0)
    if longest > spec.max_position:
        raise ConfigError(
            f"max_input_len and max_output_len make {longest} tokens, the model was trained for {spec.max_position}: ask for less"
        )
    gpus = limits.get("tensor_parallel", 1)
    if spec.num_heads % gpus or (spec.num_kv_heads % gpus and gpus % spec.num_kv_heads):
        raise ConfigError(
            f"tensor_parallel={gpus} does not divide the model's {spec.num_heads} heads and {spec.num_kv_heads} KV heads evenly"
        )


def _prove(
    request: BuildRequest,
    folder: Path,
    engine: Mapping[str, Any],
    dtype: torch.dtype,
    warnings: list[str],
    progress: Progress | None,
) -> tuple[parts.Quality | None, int | None]:
    tokenizer = load_tokenizer(request.files.folder)
    texts = {language: [tokenizer.encode(t) for t in several] for language, several in request.proof.items()}
    if not any(texts.values()):
        warnings.append("no text for the proof was given: quality was not measured")
        return None, None
    spec = SourceModel(request.files.folder).spec
    room = _free_memory_bytes()
    streamed = 2 * source_tensor_bytes(spec, dtype) > room
    tokens = sum(len(ids) for several in texts.values() for ids in several)
    if streamed and (needed := streaming_bytes(spec, dtype, tokens)) > room:
        warnings.append(
            f"quality was not measured: that takes about {format_bytes(needed)} of memory, {format_bytes(room)} are free here"
        )
        return None, None
    device = choose_device(EngineConfig.create())
    on_cpu = device.type == "cpu"
    kv = str(engine.get("kv_quantization", "none"))
    return prove(
        Runnable(request.files.folder),
        Runnable(
            folder,
            quantization=str(engine.get("quantization", "none")),
            kv_quantization="none" if on_cpu and kv == "fp8" else kv,
        ),
        texts,
        request.proof_source,
        device=device,
        dtype=torch.bfloat16 if on_cpu and dtype == torch.float16 else dtype,
        streamed=streamed,
        progress=progress,
    )


def _free_memory_bytes() -> int:
    """What a process may still take: the machine's free memory, or the container's limit if that is less."""
    import psutil

    free = int(psutil.virtual_memory().available)
    limit = memory_limit_bytes()
    return free if limit is None else min(free, limit)


def _layer_error(layer: QuantisedLayer, sensitivity: list[Sensitivity]) -> parts.LayerError:
    return parts.LayerError(
        layer=layer.index,
        drift=_rounded(layer.drift),
        products={r.product: _rounded(r.error) for r in layer.reports},
        kept=tuple(r.product for r in layer.reports if r.kept),
        sensitivity={s.product: s.part() for s in sensitivity if s.layer == layer.index},
        alphas={r.product: r.alpha for r in layer.reports if r.alpha is not None},
    )


def _rounded(value: float) -> float:
    """Six significant digits."""
    return float(f"{value:.6g}")


def _parameters(source: SourceModel) -> int:
    spec = source.spec
    heads = 1 if spec.tied_embeddings else 2
    return spec.body_parameters + heads * spec.head_parameters + (2 * spec.num_layers + 1) * spec.hidden_size


def _check_modelopt(recipe: Recipe) -> None:
    if (recipe.quantization, recipe.granularity, recipe.activations) != ("fp8", "tensor", "static"):
        raise UnsupportedError(
            "--export modelopt writes FP8 with one scale per tensor and calibrated inputs: add --quantization fp8 "
            "--fp8-granularity tensor --fp8-activations static"
        )


@contextmanager
def _staging(out: Path) -> Any:
    """A scratch folder beside `out`, gone at the end whatever happens."""
    elsewhere = "another folder with --out"
    with disk_errors(out.parent, "the artefact", elsewhere):
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        except FileNotFoundError as error:  # where nobody can make a file, /proc for one
            raise ConfigError(f"cannot write the artefact at {out.parent}; choose {elsewhere}") from error
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _publish(folder: Path, out: Path) -> None:
    folder.chmod(0o755)  # a temporary folder begins private
    if out.exists():
        old = folder.with_name(folder.name + ".old")
        out.rename(old)
        folder.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    else:
        folder.rename(out)
