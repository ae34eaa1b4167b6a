"""The proof: the artefact beside its source on texts that calibration never saw, through the engine's own decoders."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from inferoptim.build.artefact import Quality
from inferoptim.build.paired import detectable_increase
from inferoptim.config import EngineConfig
from inferoptim.engine.loading import choose_device
from inferoptim.engine.resident import return_freed_memory
from inferoptim.engine.runner import DecoderLike
from inferoptim.engine.scoring import Scorer, TokenDivergence, divergence
from inferoptim.kernels import cpu
from inferoptim.models.artefact import engine_fields
from inferoptim.models.decoder import Decoder, LayersOnDisk
from inferoptim.models.fused import FusedDecoder, unsupported
from inferoptim.models.hub import resolve_model
from inferoptim.models.load import load_decoder, read_spec
from inferoptim.models.tokenizer import load_tokenizer
from inferoptim.records.schema import Interval
from inferoptim.records.statistics import paired_interval

Array = NDArray[np.float64]
Progress = Callable[[str, int, int], None]
_BLOCK = 16  # tokens of the scorer's cache blocks
_STEP_TOKENS = 512  # of several texts in one step; their logits are in memory together


@dataclass(frozen=True, slots=True)
class Runnable:
    """A model folder and the engine settings that change its output."""

    folder: Path
    quantization: str = "none"
    kv_quantization: str = "none"


def divergences(
    reference: Runnable,
    other: Runnable,
    texts: Sequence[Sequence[int]],
    *,
    device: torch.device,
    dtype: torch.dtype,
    emulate_fp8: bool,
    streamed: bool = False,
    progress: Progress | None = None,
) -> tuple[list[TokenDivergence], DecoderLike]:
    """Two models on the same texts, one in memory at a time.

    Args:
        emulate_fp8: round what a device with FP8 products would, where this one has none.
        streamed: not even one: all texts go through a layer, then the next one is read.

    Returns:
        (a divergence for each text, the other model's decoder).
    """
    steps = [range(len(texts))] if streamed else _steps([len(ids) for ids in texts])
    room = max(sum(_blocks(len(texts[i])) for i in step) for step in steps) * _BLOCK
    return_freed_memory()  # what was quantised needed more than two models do
    # the first model's logits outlive it, and may not fit in memory
    with tempfile.TemporaryFile() as spill, ExitStack() as files:
        on_disk = files if streamed else None
        decoder = _load(reference, device, dtype, emulate_fp8, on_disk)
        scorer = Scorer(decoder, room, reference.kv_quantization, _BLOCK)
        vocab = decoder.spec.vocab_size
        for step in steps:
            if progress:
                progress("quality: reference", step[0], len(texts))
            scorer.logits(*(texts[i] for i in step)).cpu().numpy().tofile(spill)
        del scorer, decoder
        return_freed_memory()
        spill.flush()
        spill.seek(0)
        runner = _load(other, device, dtype, emulate_fp8, on_disk)
        scorer = Scorer(runner, room, other.kv_quantization, _BLOCK)
        results = []
        for step in steps:
            if progress:
                progress("quality: compared", step[0], len(texts))
            logits_TV = scorer.logits(*(texts[i] for i in step))
            parts = torch.split(logits_TV, [len(texts[i]) for i in step])
            for ids, other_TV in zip((texts[i] for i in step), parts, strict=True):
                exact = np.fromfile(spill, np.float32, len(ids) * vocab).reshape(len(ids), vocab)
                results.append(divergence(torch.from_numpy(exact), other_TV, ids))
    return results, runner


def _blocks(tokens: int) -> int:
    return -(-tokens // _BLOCK)


def _steps(lengths: Sequence[int]) -> list[range]:
    """Texts next to each other that share a step: as many as a small step holds, so that weights are read less often."""
    steps: list[range] = []
    tokens = 0
    for i, length in enumerate(lengths):
        if steps and tokens + length <= _STEP_TOKENS:
            steps[-1] = range(steps[-1].start, i + 1)
            tokens += length
        else:
            steps.append(range(i, i + 1))
            tokens = length
    return steps


def prove(
    source: Runnable,
    artefact: Runnable,
    texts: Mapping[str, Sequence[Sequence[int]]],
    description: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    streamed: bool = False,
    progress: Progress | None = None,
) -> tuple[Quality, int]:
    """Compare the built model with its source, text by text.

    Args:
        texts: language → token ids of each text; the texts are the units that intervals resample.
        description: the texts in words.
        streamed: neither model is loaded, see `divergences`.

    Returns:
        (quality, bytes of the artefact's weights in memory).
    """
    flat = [(language, ids) for language, several in texts.items() for ids in several]
    compared, runner = divergences(
        source,
        artefact,
        [ids for _, ids in flat],
        device=device,
        dtype=dtype,
        emulate_fp8=device.type == "cpu",
        streamed=streamed,
        progress=progress,
    )
    results = [(language, d) for (language, _), d in zip(flat, compared, strict=True)]
    every = [d for _, d in results]
    by_language = {
        language: distribution_intervals([d for name, d in results if name == language], language)
        for language in dict.fromkeys(name for name, _ in results)
    }
    values = distribution_intervals(every, "all")
    quality = Quality(
        texts=description,
        tokens=sum(d.num_tokens for d in every),
        computed_by=type(runner).__name__ + (", layers read one after the other" if streamed else ""),
        detectable_perplexity_increase=detectable_increase(
            [float((d.nll - d.nll_reference).mean()) for d in every], [d.num_tokens for d in every]
        ),
        by_language=by_language,
        **values,
    )
    resident = runner.weight_bytes
    if streamed:
        assert isinstance(runner, Decoder)
        assert isinstance(runner.weights.layers, LayersOnDisk)
        resident += sum(runner.weights.layers.seen_bytes.values())
    return quality, resident


def _load(
    model: Runnable, device: torch.device, dtype: torch.dtype, emulate_fp8: bool, on_disk: ExitStack | None
) -> DecoderLike:
    """The decoder on the op set that would serve it."""
    decoder = load_decoder(
        model.folder,
        device=device,
        dtype=dtype,
        quantization=model.quantization,
        emulate_fp8=emulate_fp8,
        on_disk=on_disk,
    )
    if on_disk is None and unsupported(decoder) is None and cpu.available():
        return FusedDecoder(decoder)
    return decoder


def distribution_intervals(divergences: Sequence[TokenDivergence], key: str) -> dict[str, Interval]:
    """Token-weighted means over texts, intervals by resampling texts."""
    tokens = np.array([d.num_tokens for d in divergences], float)

    def mean_of(sums: Sequence[float]) -> Callable[[Array], Array]:
        totals = np.array(sums, float)
        return lambda weights: np.asarray(weights @ totals / (weights @ tokens), float)

    log_ratio = mean_of([float((d.nll - d.nll_reference).sum()) for d in divergences])

    def interval(name: str, statistic: Callable[[Array], Array], most: float = np.inf) -> Interval:
        # a few texts give intervals wide enough to leave what the quantity can be
        found = paired_interval(statistic, len(divergences), f"{key}:{name}")
        return found.model_copy(update={"low": max(found.low, 0.0), "high": min(found.high, most)})

    return {
        "perplexity_ratio": interval("ppl", lambda w: np.exp(log_ratio(w))),
        "kl_nats": interval("kl", mean_of([float(d.kl.sum()) for d in divergences])),
        "top1_agreement": interval("top1", mean_of([float(d.top1_equal.sum()) for d in divergences]), 1.0),
        "top5_overlap": interval("top5", mean_of([float(d.top5_overlap.sum()) for d in divergences]), 1.0),
    }


def distribution_of_sides(
    a: str, b: str, texts: Sequence[str], progress: Progress | None = None
) -> dict[str, Interval]:
    """KL, top-1 and top-5 between two models of the same vocabulary, as they run here; {} where a side is an endpoint."""
    if any(name.startswith(("http://", "https://")) for name in (a, b)):
        return {}
    first, second = (_runnable(name) for name in (a, b))
    tokenizer = load_tokenizer(first.folder)
    spec, other = read_spec(first.folder), read_spec(second.folder)
    if spec.vocab_size != other.vocab_size:
        return {}
    device = choose_device(EngineConfig.create())
    dtype = torch.float32 if "float32" in (spec.torch_dtype, other.torch_dtype) else torch.bfloat16
    ids = [tokenizer.encode(text) for text in texts]
    compared, _ = divergences(
        first, second, ids, device=device, dtype=dtype, emulate_fp8=False, progress=progress
    )
    intervals = distribution_intervals(compared, "compare")
    return {name: intervals[name] for name in ("kl_nats", "top1_agreement", "top5_overlap")}


def _runnable(name: str) -> Runnable:
    folder = resolve_model(name).folder
    settings, _ = engine_fields(folder)
    kv = str(settings.get("kv_quantization", "none"))
    return Runnable(
        folder,
        quantization=str(settings.get("quantization", "none")),
        kv_quantization="none" if kv == "fp8" and not torch.cuda.is_available() else kv,
    )
