"""From a Hugging Face folder to a `Decoder`: checked, streamed layer by layer, quantised on the way.

At no time is more than one layer held in full precision beside what was already converted.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from inferoptim.errors import DataError, UnsupportedError
from inferoptim.models.decoder import Decoder, DecoderWeights, LayerWeights
from inferoptim.models.rotary import inverse_frequencies
from inferoptim.models.sources import weight_shards
from inferoptim.models.spec import ModelSpec, spec_from_config, token_ids
from inferoptim.models.weights import check_finite, check_weights, weight_shapes
from inferoptim.quant.formats import DenseWeight, Linear
from inferoptim.quant.fp8 import quantize_linear_fp8
from inferoptim.quant.int8 import quantize_linear


def read_spec(folder: Path) -> ModelSpec:
    """The architecture of a model folder; what ends a generation is read from generation_config.json first.

    Raises:
        DataError: config.json is missing or not JSON.
        UnsupportedError: an architecture or feature that the decoder does not have.
    """
    spec = spec_from_config(_read_object(folder / "config.json"))
    generation = folder / "generation_config.json"
    if generation.is_file():  # chat models often end a turn by a token that only this file names
        stops = token_ids(_read_object(generation).get("eos_token_id"))
        spec = replace(spec, eos_token_ids=stops) if stops else spec
    return spec


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{path}: missing; a model folder has config.json, tokenizer.json and *.safetensors"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: a JSON object is expected")
    return content


def load_decoder(
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    quantization: str = "none",
    max_layers: int | None = None,
) -> Decoder:
    """Load a model.

    Args:
        quantization: 'none', 'int8' (weights and dynamic activations) or 'int8-weight-only': linear layers and the output
            head are quantised, the embedding keeps `dtype` for its look-ups; 'fp8' (E4M3 weights and dynamic activations):
            linear layers are quantised, the head keeps `dtype`.
        max_layers: keep only the first layers (then final norm and head): a draft made of the model itself.

    Raises:
        DataError: a tensor is missing, misshapen or not finite.
        UnsupportedError: a quantisation that this device lacks.
    """
    if quantization == "fp8":
        check_fp8(device)
    elif quantization not in ("none", "int8", "int8-weight-only"):
        raise UnsupportedError(f"quantization={quantization} is not available on {device.type}")
    spec = read_spec(folder)
    check_weights(spec, weight_shapes(folder))
    if max_layers is not None:
        windows = spec.sliding_windows[:max_layers]
        spec = replace(spec, num_layers=max_layers, sliding_windows=windows)

    def convert(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
        dense = DenseWeight(weight, bias)
        if quantization == "none":
            return dense
        if quantization == "fp8":
            return quantize_linear_fp8(dense)
        return quantize_linear(dense, dynamic_activations=quantization == "int8")

    with ExitStack() as stack:
        get = _reader(folder, stack, device, dtype)
        layers = tuple(_layer(spec, index, get, convert) for index in range(spec.num_layers))
        embedding = get("model.embed_tokens.weight")
        output = embedding if spec.tied_embeddings else get("lm_head.weight")
        head = DenseWeight(output) if quantization == "fp8" else convert(output)
        weights = DecoderWeights(
            embedding=embedding,
            layers=layers,
            final_norm=get("model.norm.weight"),
            head=head,
            inv_freq=inverse_frequencies(spec, device),
        )
    return Decoder(spec, weights, device=device, dtype=dtype)


def check_fp8(device: torch.device) -> None:
    """Refuse a device whose tensor cores have no float8.

    Raises:
        UnsupportedError: not an NVIDIA GPU of compute capability 8.9 or later.
    """
    if device.type != "cuda":
        raise UnsupportedError(f"quantization=fp8 is not available on {device.type}; use int8")
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 9):
        raise UnsupportedError(
            f"fp8 needs compute capability 8.9 or later, {torch.cuda.get_device_name(device)} has "
            f"{capability[0]}.{capability[1]}: use int8 or none"
        )


def _reader(
    folder: Path, stack: ExitStack, device: torch.device, dtype: torch.dtype
) -> Callable[[str], torch.Tensor]:
    """A function from a tensor's name to its own copy on `device` in `dtype`, checked finite."""
    shards = weight_shards(folder)
    names = {name: shard for shard, held in (shards or {}).items() for name in held}
    files = {
        shard: stack.enter_context(safe_open(folder / shard, framework="pt", device="cpu"))
        for shard in (shards or {"model.safetensors": set()})
    }

    def get(name: str) -> torch.Tensor:
        stored: torch.Tensor = files[names.get(name, "model.safetensors")].get_tensor(name)
        check_finite(name, stored)
        # a copy: the memory map goes with the file, and an unquantised weight must not keep it alive
        return stored.to(device=device, dtype=dtype, copy=True)

    return get


def _layer(
    spec: ModelSpec,
    index: int,
    get: Callable[[str], torch.Tensor],
    convert: Callable[[torch.Tensor, torch.Tensor | None], Linear],
) -> LayerWeights:
    prefix = f"model.layers.{index}."

    def fused(names: tuple[str, ...], biased: bool = False) -> Linear:
        weight = torch.cat([get(f"{prefix}{name}.weight") for name in names])
        bias = torch.cat([get(f"{prefix}{name}.bias") for name in names]) if biased else None
        return convert(weight, bias)

    return LayerWeights(
        input_norm=get(f"{prefix}input_layernorm.weight"),
        qkv=fused(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), biased=spec.qkv_bias),
        q_norm=get(f"{prefix}self_attn.q_norm.weight") if spec.qk_norm else None,
        k_norm=get(f"{prefix}self_attn.k_norm.weight") if spec.qk_norm else None,
        o=fused(("self_attn.o_proj",)),
        post_norm=get(f"{prefix}post_attention_layernorm.weight"),
        gate_up=fused(("mlp.gate_proj", "mlp.up_proj")),
        down=fused(("mlp.down_proj",)),
        window=spec.window(index),
    )
