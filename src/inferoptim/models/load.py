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
from inferoptim.kernels.threads import one_thread
from inferoptim.models.decoder import Decoder, DecoderWeights, LayersOnDisk, LayerWeights
from inferoptim.models.gguf_blocks import open_blocks
from inferoptim.models.rotary import inverse_frequencies
from inferoptim.models.sources import BLOCKS_NAME, weight_shards
from inferoptim.models.spec import ModelSpec, spec_from_config, token_ids
from inferoptim.models.weights import check_finite, check_weights, expected_shapes, weight_shapes
from inferoptim.quant.checkpoint import (
    QuantScheme,
    dequantised,
    is_quantised,
    joined,
    logical_shapes,
    moved,
    read_linear,
    scheme_from_config,
)
from inferoptim.quant.formats import DenseWeight, Fp8Weight, GroupedWeight, Linear
from inferoptim.quant.fp8 import quantize_linear_fp8
from inferoptim.quant.groups import quantize_groups
from inferoptim.quant.int8 import quantize_linear


def read_spec(folder: Path) -> ModelSpec:
    """The architecture of a model folder; what ends a generation is read from generation_config.json first.

    Raises:
        DataError: config.json is missing or not JSON.
        UnsupportedError: an architecture or feature that the decoder does not have.
    """
    spec = spec_from_config(_read_json(folder / "config.json"))
    generation = folder / "generation_config.json"
    if generation.is_file():  # chat models often end a turn by a token that only this file names
        stops = token_ids(_read_json(generation).get("eos_token_id"))
        spec = replace(spec, eos_token_ids=stops) if stops else spec
    return spec


def read_scheme(folder: Path) -> QuantScheme | None:
    """How the checkpoint in a model folder is quantised; None where it is not.

    Raises:
        UnsupportedError: a quantisation that is not read here, by name.
    """
    modelopt = folder / "hf_quant_config.json"
    return scheme_from_config(
        _read_json(folder / "config.json"), _read_json(modelopt) if modelopt.is_file() else None
    )


def _read_json(path: Path) -> dict[str, Any]:
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
    emulate_fp8: bool = False,
    on_disk: ExitStack | None = None,
) -> Decoder:
    """Load a model.

    Args:
        quantization: 'none', 'int8' (weights and dynamic activations) or 'int8-weight-only': linear layers and the output
            head are quantised, the embedding keeps `dtype` for its look-ups; 'int4' (CPU; 4-bit groups and dynamic
            activations): linear layers and head as the blocks that a GGUF file or a 4-bit checkpoint holds, others rounded to
            4 bits, the head to 8; 'fp8' (E4M3 weights and dynamic activations): linear layers are quantised, the head keeps
            `dtype`.
            A checkpoint that is quantised already keeps its linear layers as they are, dense ones too; the setting then applies to
            the head.
        emulate_fp8: on a device without FP8, compute what one with it would (slow: for judging quality); otherwise such a
            checkpoint is dequantised there.
        max_layers: keep only the first layers (then final norm and head): a draft made of the model itself.
        on_disk: leave the layers in their files, which stay open until this is closed: every step reads all of them.

    Raises:
        DataError: a tensor is missing, misshapen or not finite.
        UnsupportedError: a quantisation that this device lacks.
    """
    if quantization == "fp8" and not emulate_fp8:
        check_fp8(device)
    elif quantization not in ("none", "int8", "int8-weight-only", "int4", "fp8") or (
        quantization == "int4" and device.type != "cpu"
    ):
        raise UnsupportedError(f"quantization={quantization} is not available on {device.type}")
    spec = read_spec(folder)
    scheme, shapes = read_scheme(folder), weight_shapes(folder)
    check_weights(spec, shapes if scheme is None else logical_shapes(shapes, expected_shapes(spec)))
    if max_layers is not None:
        windows = spec.sliding_windows[:max_layers]
        spec = replace(spec, num_layers=max_layers, sliding_windows=windows)

    def convert(weight: torch.Tensor, bias: torch.Tensor | None = None, bits: int | None = None) -> Linear:
        dense = DenseWeight(weight, bias)
        if quantization == "none":
            return dense
        if quantization == "fp8":
            return quantize_linear_fp8(dense)
        if quantization == "int4":
            # beside blocks of 4 bits stand those that the file's author wanted finer
            return quantize_groups(dense, bits or (8 if has_blocks else 4)) or dense
        return quantize_linear(dense, dynamic_activations=quantization == "int8")

    has_blocks = (folder / BLOCKS_NAME).is_file()
    with ExitStack() as loading:
        stack = on_disk or loading
        if device.type == "cpu":
            loading.enter_context(one_thread())
        stored = _reader(folder, stack, reopen=on_disk is not None)
        blocks = open_blocks(folder, stack)

        def get(name: str) -> torch.Tensor:
            # a copy: the memory map goes with the file, and an unquantised weight must not keep it alive
            return stored(name).to(device=device, dtype=dtype, copy=True)

        def quantised(module: str) -> Linear | None:
            """The layer as the checkpoint, or the GGUF file that it comes from, quantised it; None where it is dense."""
            if quantization == "int4" and (of_file := blocks(f"{module}.weight")) is not None:
                return of_file
            if scheme is None or not is_quantised(module, shapes):
                return None
            shape = expected_shapes_of[f"{module}.weight"]
            linear = read_linear(
                module,
                scheme,
                shapes,
                stored,
                shape=(shape[0], shape[1]),
                dtype=dtype,
                grouped=quantization == "int4",
            )
            if isinstance(linear, Fp8Weight) and not emulate_fp8 and not has_fp8(device):
                linear = dequantised(linear, dtype)
            return moved(linear, device)

        expected_shapes_of = expected_shapes(spec)
        # what a quantised checkpoint holds dense was left so on purpose
        left = convert if scheme is None else DenseWeight

        def layer(index: int) -> LayerWeights:
            return _layer(spec, index, get, quantised, convert, left)

        layers = (
            LayersOnDisk(layer, spec.num_layers) if on_disk else tuple(map(layer, range(spec.num_layers)))
        )
        embedding = get("model.embed_tokens.weight")
        output = "model.embed_tokens" if spec.tied_embeddings else "lm_head"
        head = quantised(output)
        if head is None:
            dense = embedding if spec.tied_embeddings else get(f"{output}.weight")
            head = DenseWeight(dense) if quantization == "fp8" else convert(dense, bits=8)
        weights = DecoderWeights(
            embedding=embedding,
            layers=layers,
            final_norm=get("model.norm.weight"),
            head=head,
            inv_freq=inverse_frequencies(spec, device),
        )
    return Decoder(spec, weights, device=device, dtype=dtype)


def without_groups(decoder: Decoder) -> Decoder:
    """For torch's operators, which have no kernels for weights in groups: the same values, dense once and for all."""

    def dense(weight: Linear) -> Linear:
        return dequantised(weight, decoder.dtype) if isinstance(weight, GroupedWeight) else weight

    weights = decoder.weights
    layers = tuple(
        replace(
            layer,
            qkv=dense(layer.qkv),
            o=dense(layer.o),
            gate_up=dense(layer.gate_up),
            down=dense(layer.down),
        )
        for layer in weights.layers
    )
    weights = replace(weights, layers=layers, head=dense(weights.head))
    return Decoder(decoder.spec, weights, device=decoder.device, dtype=decoder.dtype)


def has_fp8(device: torch.device) -> bool:
    """Whether the device multiplies float8 (an NVIDIA GPU of compute capability 8.9 or later)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def check_fp8(device: torch.device) -> None:
    """Refuse a device whose tensor cores have no float8.

    Raises:
        UnsupportedError: not an NVIDIA GPU of compute capability 8.9 or later.
    """
    if device.type != "cuda":
        raise UnsupportedError(f"quantization=fp8 is not available on {device.type}; use int8")
    if not has_fp8(device):
        major, minor = torch.cuda.get_device_capability(device)
        raise UnsupportedError(
            f"fp8 needs compute capability 8.9 or later, {torch.cuda.get_device_name(device)} has "
            f"{major}.{minor}: use int8 or none"
        )


def _reader(folder: Path, stack: ExitStack, *, reopen: bool = False) -> Callable[[str], torch.Tensor]:
    """A function from a tensor's name to the tensor as stored, checked finite.

    Args:
        reopen: a file for every tensor anew: pages of one that stays mapped count as the process's memory.
    """
    shards = weight_shards(folder)
    names = {name: shard for shard, held in (shards or {}).items() for name in held}
    opened = () if reopen else (shards or {"model.safetensors": set()})
    files = {
        shard: stack.enter_context(safe_open(folder / shard, framework="pt", device="cpu"))
        for shard in opened
    }

    def stored(name: str) -> torch.Tensor:
        shard = names.get(name, "model.safetensors")
        tensor: torch.Tensor
        if reopen:
            with safe_open(folder / shard, framework="pt", device="cpu") as file:
                tensor = file.get_tensor(name).clone()
        else:
            tensor = files[shard].get_tensor(name)
        if tensor.is_floating_point():
            check_finite(name, tensor.float() if tensor.itemsize == 1 else tensor)
        return tensor

    return stored


def _layer(
    spec: ModelSpec,
    index: int,
    get: Callable[[str], torch.Tensor],
    quantised: Callable[[str], Linear | None],
    convert: Callable[[torch.Tensor, torch.Tensor | None], Linear],
    left: Callable[[torch.Tensor, torch.Tensor | None], Linear],
) -> LayerWeights:
    """One layer; `convert` makes a dense layer what the setting asks for, `left` one of a product that is dense in whole."""
    prefix = f"model.layers.{index}."

    def fused(names: tuple[str, ...], biased: bool = False) -> Linear:
        bias = torch.cat([get(f"{prefix}{name}.bias") for name in names]) if biased else None
        parts = [quantised(prefix + name) for name in names]
        if all(part is None for part in parts):
            return left(torch.cat([get(f"{prefix}{name}.weight") for name in names]), bias)
        # beside 4-bit neighbours a dense layer is put into groups, beside others they are dequantised
        beside = convert if any(isinstance(part, GroupedWeight) for part in parts) else DenseWeight
        present = [
            beside(get(f"{prefix}{name}.weight"), None) if part is None else part
            for name, part in zip(names, parts, strict=True)
        ]
        return joined(present, bias, get(f"{prefix}input_layernorm.weight").dtype)

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
