"""``inferoptim build`` and ``inferoptim inspect``: make a serving artefact; show one."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Literal

import typer

from inferoptim.cli.artefact_tables import print_artefact


def build(
    model: Annotated[
        str, typer.Argument(help="Alias, Hub id, local folder or .gguf file; not quantised yet.")
    ] = "smollm2-135m",
    out: Annotated[Path, typer.Option("--out", help="Folder to make.")] = Path("artefact"),
    quantization: Annotated[
        Literal["fp8", "int8", "int8-weight-only", "int4-weight-only", "none"],
        typer.Option("--quantization", help="What becomes of the linear layers' weights and inputs."),
    ] = "int8",
    kv_cache_dtype: Annotated[
        Literal["auto", "fp8", "int8"],
        typer.Option("--kv-cache-dtype", help="auto: the model's type."),
    ] = "auto",
    observer: Annotated[
        Literal["max", "percentile", "mse"],
        typer.Option(
            "--observer", help="How a scale is chosen: clip nothing, a quantile, or the least squared error."
        ),
    ] = "mse",
    smooth: Annotated[
        bool, typer.Option("--smooth/--no-smooth", help="int8: SmoothQuant where it lowers the error.")
    ] = True,
    gptq: Annotated[bool, typer.Option("--gptq/--no-gptq", help="Error compensation.")] = True,
    group_size: Annotated[
        int,
        typer.Option(
            "--group-size", help="int4: input channels that share a scale, halved where it must divide."
        ),
    ] = 128,
    symmetric: Annotated[
        bool, typer.Option("--symmetric/--asymmetric", help="int4: without or with zero points.")
    ] = True,
    quantise_head: Annotated[
        bool,
        typer.Option(
            "--quantise-head/--keep-head",
            help="int8: whether this engine rounds the output head too when it loads the artefact (where a goal allows it).",
        ),
    ] = True,
    fp8_granularity: Annotated[
        Literal["channel", "tensor"], typer.Option("--fp8-granularity", help="fp8: scales of the weights.")
    ] = "channel",
    fp8_activations: Annotated[
        Literal["dynamic", "static"], typer.Option("--fp8-activations", help="fp8: scales of the inputs.")
    ] = "dynamic",
    keep_above: Annotated[
        float | None,
        typer.Option(
            "--keep-above",
            help="Leave a product in the model's type where its relative error passes this (e.g. 0.03).",
        ),
    ] = None,
    keep_share: Annotated[
        float | None,
        typer.Option(
            "--keep-share",
            min=0,
            max=1,
            help="Leave the most sensitive products in the model's type, up to this share of the linear weights (e.g. 0.1), "
            "whatever the goal; 0: quantise all.",
        ),
    ] = None,
    max_kl: Annotated[
        float | None,
        typer.Option(
            "--max-kl",
            min=0,
            help="Goal: leave as little in the model's type as keeps KL(source || artefact) under this, nats a token, on held-out "
            "calibration texts. Default, unless --keep-... is given: fp8 0.007, int8 0.0018, int8-weight-only 0.002.",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            help="Your prompts: one a line, or JSON lines with 'prompt'. Default: the shipped texts.",
        ),
    ] = None,
    calibration_tokens: Annotated[
        int, typer.Option("--calibration-tokens", min=32, help="Most tokens to calibrate on.")
    ] = 4096,
    max_batch_size: Annotated[
        int | None, typer.Option("--max-batch-size", min=1, help="Most requests in one step.")
    ] = None,
    max_input_len: Annotated[
        int | None, typer.Option("--max-input-len", min=1, help="Longest prompt, tokens.")
    ] = None,
    max_output_len: Annotated[
        int | None, typer.Option("--max-output-len", min=1, help="Longest answer, tokens.")
    ] = None,
    tensor_parallel: Annotated[
        int,
        typer.Option(
            "--tensor-parallel",
            min=1,
            help="GPUs to serve it on with vLLM or TensorRT-LLM; this engine uses one.",
        ),
    ] = 1,
    tune_budget: Annotated[
        float,
        typer.Option(
            "--tune-budget",
            min=0,
            help="Seconds to search settings on this machine: how kernels cut their work, KV split, block size, threads, token budget "
            "of a step and, on a GPU, most sequences of a step; kept where the gain is more than noise. 0: none.",
        ),
    ] = 0.0,
    speed_runs: Annotated[
        int,
        typer.Option(
            "--speed-runs", min=0, help="Timed runs of the artefact on this machine; 0: not measured."
        ),
    ] = 0,
    export: Annotated[
        Literal["hf", "modelopt"],
        typer.Option("--export", help="hf: compressed-tensors; modelopt: for TensorRT-LLM."),
    ] = "hf",
    reproducible: Annotated[
        bool,
        typer.Option(
            "--reproducible", help="No time stamp, no tuning, no speed: two builds give the same bytes."
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an artefact that is there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print artefact.json.")] = False,
) -> None:
    """Quantise a model with calibration, prove what it cost in quality, and write a serving artefact.

    The artefact is a standard Hugging Face folder (compressed-tensors) plus artefact.json: recipe, errors by layer, quality with
    intervals on texts that calibration never saw, engine settings, and the SHA-256 of every file.
    """
    from inferoptim.bench.corpus import LANGUAGES, paragraphs, questions
    from inferoptim.bench.prompt_file import read_prompts
    from inferoptim.build.pipeline import BuildRequest, build_artefact
    from inferoptim.build.recipe import DEFAULT_MAX_KL, Recipe
    from inferoptim.cli.progress import counted_progress, download_progress
    from inferoptim.config import create_validated
    from inferoptim.errors import ConfigError
    from inferoptim.models.hub import resolve_model
    from inferoptim.models.tokenizer import load_tokenizer

    if keep_share is not None and max_kl is not None:
        raise ConfigError("--keep-share fixes what --max-kl would choose: give one or the other")
    if (keep_share, keep_above, max_kl) == (None, None, None):
        max_kl = DEFAULT_MAX_KL.get(quantization)
    recipe = create_validated(
        Recipe,
        {
            "quantization": quantization,
            "observer": observer,
            "smooth": smooth,
            "compensate": gptq,
            "group_size": group_size,
            "symmetric": symmetric,
            "quantise_head": quantise_head,
            "granularity": fp8_granularity,
            "activations": fp8_activations,
            "kv_cache_dtype": kv_cache_dtype,
            "keep_above": keep_above,
            "keep_share": keep_share,
            "max_kl": max_kl,
        },
    )
    limits = {
        "max_batch_size": max_batch_size,
        "max_input_len": max_input_len,
        "max_output_len": max_output_len,
        "tensor_parallel": tensor_parallel if tensor_parallel > 1 else None,
    }
    # Even paragraphs and all questions calibrate, odd paragraphs prove; both languages alternate.
    several = [(*paragraphs(lang)[0::2], *questions(lang)) for lang in LANGUAGES]
    shipped = [text for texts in zip_longest(*several) for text in texts if text is not None]
    with download_progress() as show_download:
        files = resolve_model(model, progress=show_download)
    own: list[tuple[int, ...]] | None = None
    if calibration is not None:
        own = [p.prompt_token_ids for p in read_prompts(calibration, load_tokenizer(files.folder), 1)]
    request = BuildRequest(
        files=files,
        out=out,
        recipe=recipe,
        calibration=shipped if own is None else own,
        calibration_source="shipped English and French texts, even paragraphs and questions"
        if calibration is None
        else calibration.name,
        proof={lang: list(paragraphs(lang)[1::2]) for lang in LANGUAGES},
        proof_source="shipped English and French texts, odd paragraphs",
        limits={name: value for name, value in limits.items() if value is not None},
        calibration_tokens=calibration_tokens,
        tune_budget_s=tune_budget,
        speed_runs=speed_runs,
        export=export,
        reproducible=reproducible,
        force=force,
    )
    with counted_progress() as show:
        artefact = build_artefact(request, show)
    print_artefact(artefact, out, json=json)


def inspect(
    folder: Annotated[Path, typer.Argument(help="An artefact that `inferoptim build` wrote.")],
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Check the SHA-256 of every file.")
    ] = True,
    json: Annotated[bool, typer.Option("--json", help="Print artefact.json.")] = False,
) -> None:
    """Show what an artefact is, what it cost in quality, and that its files are the ones that were built."""
    from inferoptim.build.artefact import read_artefact
    from inferoptim.errors import ConfigError
    from inferoptim.models.hub import resolve_model

    artefact = read_artefact(folder) if folder.is_dir() else None
    if artefact is None:
        raise ConfigError(
            f"{folder}: no artefact.json; make one with `inferoptim build MODEL --out {folder}`"
        )
    if verify:
        resolve_model(str(folder.resolve()), verify=True)
    print_artefact(artefact, folder, json=json, verified=verify)
