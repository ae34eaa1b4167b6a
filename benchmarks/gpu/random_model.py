"""An engine over random weights: the shape of a model without its files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from inferoptim.config import EngineConfig
from inferoptim.engine.core import EngineCore
from inferoptim.models.decoder import Decoder, DecoderWeights, LayerWeights
from inferoptim.models.hub import ModelFiles
from inferoptim.models.load import check_fp8
from inferoptim.models.rotary import inverse_frequencies
from inferoptim.models.spec import spec_from_config
from inferoptim.quant.formats import DenseWeight, Linear
from inferoptim.quant.fp8 import quantize_linear_fp8
from inferoptim.quant.int8 import quantize_linear


def random_decoder(
    config: dict[str, Any], *, device: torch.device, dtype: torch.dtype, quantization: str, seed: int = 0,
    max_layers: int | None = None, scale: float = 0.02, drawn_in: torch.dtype | None = None,
) -> Decoder:  # fmt: skip
    """A decoder of that config.json with normal weights of standard deviation `scale`, made on the device.

    Args:
        drawn_in: the type that the numbers are rounded to, so that decoders of two types can have the same weights;
            default: `dtype`.
    """
    if quantization == "fp8":
        check_fp8(device)
    spec = spec_from_config(config)
    if max_layers is not None:
        spec = replace(spec, num_layers=max_layers, sliding_windows=spec.sliding_windows[:max_layers])
    generator = torch.Generator(device=device).manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        drawn = torch.randn(shape, generator=generator, device=device, dtype=drawn_in or dtype).mul_(scale)
        return drawn.to(dtype)

    def convert(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
        dense = DenseWeight(weight, bias)
        if quantization == "none":
            return dense
        if quantization == "fp8":
            return quantize_linear_fp8(dense)
        return quantize_linear(dense, dynamic_activations=quantization == "int8")

    def norm(width: int) -> torch.Tensor:
        return (1 + normal(width).to(drawn_in or dtype)).to(dtype)

    heads, kv, dim, hidden, inter = (
        spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.hidden_size, spec.intermediate_size,
    )  # fmt: skip
    width = (heads + 2 * kv) * dim
    layers = tuple(
        LayerWeights(
            input_norm=norm(hidden),
            qkv=convert(normal(width, hidden), normal(width) if spec.qkv_bias else None),
            q_norm=norm(dim) if spec.qk_norm else None,
            k_norm=norm(dim) if spec.qk_norm else None,
            o=convert(normal(hidden, heads * dim)),
            post_norm=norm(hidden),
            gate_up=convert(normal(2 * inter, hidden)),
            down=convert(normal(hidden, inter)),
            window=spec.window(index),
        )
        for index in range(spec.num_layers)
    )
    embedding = normal(spec.vocab_size, hidden)
    output = embedding if spec.tied_embeddings else normal(spec.vocab_size, hidden)
    weights = DecoderWeights(
        embedding=embedding, layers=layers, final_norm=norm(hidden),
        head=DenseWeight(output) if quantization == "fp8" else convert(output),
        inv_freq=inverse_frequencies(spec, device),
    )  # fmt: skip
    return Decoder(spec, weights, device=device, dtype=dtype)


@contextmanager
def _instead_of_files(config: dict[str, Any], scale: float, drawn_in: torch.dtype | None) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(config))
        files = ModelFiles("random", folder, "random", "local", "random", 0)

        def load(folder: Path, **fields: Any) -> Decoder:
            return random_decoder(config, scale=scale, drawn_in=drawn_in, **fields)

        with (
            mock.patch("inferoptim.engine.opening.resolve_model", return_value=files),
            mock.patch("inferoptim.engine.loading.load_decoder", load),
        ):
            yield name


def random_engine(
    config: dict[str, Any], *, scale: float = 0.02, drawn_in: torch.dtype | None = None, **fields: Any
) -> EngineCore:
    """An `EngineCore` whose model has random weights; everything else is as with files."""
    with _instead_of_files(config, scale, drawn_in) as folder:
        return EngineCore(EngineConfig.create(model=folder, **fields))
