"""Quantised checkpoints of other tools: which method wrote them, and their linear layers as this engine holds them.

Read: compressed-tensors (int8, fp8 and packed 4- or 8-bit), ModelOpt FP8, Hugging Face block ``fp8``, GPTQ, AWQ. What the
engine computes with keeps its integers (`Int8Weight`, `Fp8Weight` and, where asked for, `GroupedWeight`); every other layout is
dequantised to the model's type, exactly as its own definition says. Static input scales are not used: inputs are scaled per token here.

A module is known as quantised by the tensors that it has, so layers left in high precision need no list.

Legend: N output features · K input features · G groups of input features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from inferoptim.errors import DataError, UnsupportedError
from inferoptim.quant import groups
from inferoptim.quant.formats import DenseWeight, Fp8Weight, GroupedWeight, Int8Weight, Linear
from inferoptim.quant.packing import unpack_columns, unpack_rows, unpack_words

Method = Literal["compressed-tensors", "modelopt", "fp8", "gptq", "awq"]
METHODS: tuple[Method, ...] = ("compressed-tensors", "modelopt", "fp8", "gptq", "awq")
_FORMATS = ("int-quantized", "float-quantized", "naive-quantized", "pack-quantized", "mixed-precision")
_AUXILIARY = (
    *(
        "weight_scale",
        "weight_scale_inv",
        "weight_zero_point",
        "weight_shape",
        "weight_packed",
        "weight_g_idx",
    ),
    *("input_scale", "input_zero_point", "output_scale", "qweight", "qzeros", "scales", "g_idx"),
    *("k_scale", "v_scale", "q_scale"),
)

GetTensor = Callable[[str], torch.Tensor]  # as stored, whatever its type


@dataclass(frozen=True, slots=True)
class QuantScheme:
    """How a checkpoint is quantised.

    Attributes:
        method: as its config names it.
        bits: of GPTQ and AWQ integers (the other layouts tell by themselves).
        dynamic_activations: inputs are quantised too (W8A8).
        zero_offset: GPTQ stores zero points less this (1, in its first format).
        float8: weights are float8 with a scale a channel; a device that has no such products takes them dense, inputs unrounded.
    """

    method: Method
    bits: int = 8
    dynamic_activations: bool = False
    zero_offset: int = 0
    float8: bool = False


def scheme_from_config(
    config: Mapping[str, Any], modelopt: Mapping[str, Any] | None = None
) -> QuantScheme | None:
    """The scheme of a checkpoint; None where it is not quantised.

    Args:
        config: ``config.json``.
        modelopt: ``hf_quant_config.json`` beside it, if there is one.

    Raises:
        UnsupportedError: a method or format that is not read here, by name.
    """
    stated = config.get("quantization_config") or config.get("compression_config")
    if not stated and not modelopt:
        return None
    stated = stated or {"quant_method": "modelopt", **(modelopt or {})}
    method = str(stated.get("quant_method", "")).replace("_", "-").lower()
    if method == "compressed-tensors":
        return _compressed_tensors(stated)
    if method == "modelopt":
        algorithm = str((stated.get("quantization") or stated).get("quant_algo", "")).upper()
        if algorithm not in ("FP8", "FP8_PER_CHANNEL_PER_TOKEN"):
            raise UnsupportedError(
                f"ModelOpt checkpoint with quant_algo={algorithm or 'none'} is not read; read: FP8"
            )
        return QuantScheme("modelopt", dynamic_activations=True, float8=True)
    if method == "fp8":
        return QuantScheme("fp8", dynamic_activations=True)
    if method in ("gptq", "awq"):
        bits = int(stated.get("bits", stated.get("w_bit", 4)))
        if bits not in (4, 8) or (method == "awq" and bits != 4):
            raise UnsupportedError(
                f"{method.upper()} with {bits} bits is not read; read: 4{' or 8' if method == 'gptq' else ''}"
            )
        second_format = str(stated.get("checkpoint_format", "gptq")).endswith("v2")
        return QuantScheme(
            "gptq" if method == "gptq" else "awq",
            bits,
            zero_offset=int(method == "gptq" and not second_format),
        )
    raise UnsupportedError(
        f"a checkpoint quantised by {method or 'an unnamed method'!r} is not read; read: {', '.join(METHODS)}"
    )


def _compressed_tensors(stated: Mapping[str, Any]) -> QuantScheme:
    groups = list((stated.get("config_groups") or {}).values())
    formats = [stated.get("format"), *(g.get("format") for g in groups if isinstance(g, Mapping))]
    if odd := [f for f in formats if f is not None and f not in _FORMATS]:
        raise UnsupportedError(
            f"compressed-tensors format {odd[0]!r} is not read; read: {', '.join(_FORMATS)}"
        )
    for group in groups:
        weights = group.get("weights") or {} if isinstance(group, Mapping) else {}
        bits = weights.get("num_bits", 8)
        if bits not in (4, 8) or (bits == 4 and weights.get("type") == "float"):
            raise UnsupportedError(
                f"compressed-tensors weights of {bits}-bit {weights.get('type', 'int')} are not read"
            )
    stated_groups = [g for g in groups if isinstance(g, Mapping)]
    return QuantScheme(
        "compressed-tensors",
        dynamic_activations=any(g.get("input_activations") for g in stated_groups),
        float8=any((g.get("weights") or {}).get("type") == "float" for g in stated_groups),
    )


def logical_shapes(
    shapes: Mapping[str, Iterable[int]], expected: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """The checkpoint as if it were not quantised: name → shape, auxiliary tensors left out.

    Args:
        shapes: of the stored tensors.
        expected: of the model that config.json describes.
    """
    found: dict[str, tuple[int, ...]] = {}
    for name, stored in shapes.items():
        module, _, last = name.rpartition(".")
        shape, weight = tuple(stored), f"{module}.weight"
        if last == "weight_packed":
            n, words = shape
            k = expected.get(weight, (0, 0))[-1]
            found[weight] = (n, k if any(-(-k * bits // 32) == words for bits in (4, 8)) else words * 8)
        elif last == "qweight":
            k, n = expected.get(weight, (0, 0))[::-1]
            fits = shape in ((k * 4 // 32, n), (k * 8 // 32, n), (k, n * 4 // 32))
            found[weight] = (n, k) if fits else shape
        elif last not in _AUXILIARY:
            found[name] = shape
    return found


def is_quantised(module: str, names: Iterable[str] | Mapping[str, Any]) -> bool:
    """Whether the checkpoint stores that linear layer in quantised form."""
    return any(
        f"{module}.{suffix}" in names
        for suffix in ("weight_packed", "weight_scale", "weight_scale_inv", "qweight")
    )


def read_linear(
    module: str,
    scheme: QuantScheme,
    names: Mapping[str, Any],
    get: GetTensor,
    *,
    shape: tuple[int, int],
    dtype: torch.dtype,
    grouped: bool = False,
) -> Linear:
    """One quantised linear layer, without its bias.

    Args:
        module: e.g. ``model.layers.0.mlp.up_proj``.
        names: the stored tensors' names.
        shape: (N, K) that the model's config implies.
        dtype: of what must be dequantised.
        grouped: keep 4-bit integers (and 8-bit ones in groups) instead of dequantising them.

    Raises:
        DataError: tensors of the module are missing or misshapen.
    """

    def part(suffix: str) -> torch.Tensor:
        if f"{module}.{suffix}" not in names:
            raise DataError(f"{module}: the {scheme.method} checkpoint lacks '{suffix}'")
        return get(f"{module}.{suffix}")

    def optional(suffix: str) -> torch.Tensor | None:
        return get(f"{module}.{suffix}") if f"{module}.{suffix}" in names else None

    try:
        if f"{module}.weight_packed" in names:
            linear = _packed(part, optional, shape, dtype, grouped)
        elif f"{module}.qweight" in names:
            linear = _gptq_or_awq(scheme, part, optional, dtype, grouped)
        elif f"{module}.weight_scale_inv" in names:
            linear = DenseWeight(_blocks(part("weight"), part("weight_scale_inv")).to(dtype))
        else:
            linear = _eight_bit(scheme, part, optional, dtype)
    except (RuntimeError, IndexError, ValueError) as error:
        raise DataError(
            f"{module}: its quantised tensors do not fit together ({str(error).splitlines()[0]})"
        ) from error
    if linear.shape != shape:
        raise DataError(f"{module}: quantised weight is {linear.shape}, config.json implies {shape}")
    return linear


def _eight_bit(
    scheme: QuantScheme, part: GetTensor, optional: Callable[[str], torch.Tensor | None], dtype: torch.dtype
) -> Linear:
    q, scale, zero = part("weight"), part("weight_scale").float(), optional("weight_zero_point")
    if scale.dim() == 2 and scale.shape[1] > 1:  # groups of input channels
        groups = q.float().reshape(len(q), scale.shape[1], -1)
        offset = 0.0 if zero is None else zero.float()[..., None]
        return DenseWeight(((groups - offset) * scale[..., None]).flatten(1).to(dtype))
    scale_N = scale.flatten().expand(q.shape[0]).contiguous()  # per tensor: the same for every channel
    if q.dtype == torch.float8_e4m3fn:
        return Fp8Weight(q.contiguous(), scale_N, None)
    if q.dtype == torch.int8 and (zero is None or not zero.any()):
        return Int8Weight(q.contiguous(), scale_N, None, scheme.dynamic_activations)
    offset = 0.0 if zero is None else zero.float().view(-1, 1)
    return DenseWeight(((q.float() - offset) * scale_N[:, None]).to(dtype))


def _packed(
    part: GetTensor,
    optional: Callable[[str], torch.Tensor | None],
    shape: tuple[int, int],
    dtype: torch.dtype,
    grouped: bool,
) -> Linear:
    packed, scale, zero = part("weight_packed"), part("weight_scale").float(), optional("weight_zero_point")
    k = shape[1]
    bits = 4 if -(-k * 4 // 32) == packed.shape[1] else 8
    q = unpack_rows(packed, bits, k)
    if bits == 8 and zero is None and scale.shape[1] == 1:
        return Int8Weight(q.contiguous(), scale.flatten().contiguous(), None, False)
    group_of = optional("weight_g_idx")
    if group_of is not None and bool((group_of >= 0).all()):
        return DenseWeight((q.float() * scale[:, group_of.long()]).to(dtype))
    zeros = None  # packed along the output channels
    if zero is not None:
        zeros = unpack_rows(zero.t().contiguous(), bits, q.shape[0]).t().float()
    if grouped and (kept := groups.from_integers(q, scale, zeros, bits)) is not None:
        return kept
    values = q.float().reshape(len(q), scale.shape[1], -1)
    if zeros is not None:
        values = values - zeros[..., None]
    return DenseWeight((values * scale[..., None]).flatten(1).to(dtype))


def _gptq_or_awq(
    scheme: QuantScheme,
    part: GetTensor,
    optional: Callable[[str], torch.Tensor | None],
    dtype: torch.dtype,
    grouped: bool,
) -> Linear:
    awq = scheme.method == "awq"
    qweight, scale_GN = part("qweight"), part("scales").float()
    q_KN = unpack_words(qweight, scheme.bits, awq=True) if awq else unpack_columns(qweight, scheme.bits)
    zero_GN = unpack_words(part("qzeros"), scheme.bits, awq=awq) + scheme.zero_offset
    group_of = optional("g_idx")
    if group_of is None:
        group_of = torch.arange(q_KN.shape[0]) // (q_KN.shape[0] // scale_GN.shape[0])
    group_of = group_of.long()
    in_order = torch.arange(q_KN.shape[0]) // (q_KN.shape[0] // scale_GN.shape[0])
    if grouped and torch.equal(group_of, in_order):
        middle = 1 << (scheme.bits - 1)
        signed = ((q_KN - middle).t(), scale_GN.t(), (zero_GN - middle).t())
        if (kept := groups.from_integers(*signed, scheme.bits)) is not None:
            return kept
    return DenseWeight(((q_KN - zero_GN[group_of]).float() * scale_GN[group_of]).t().contiguous().to(dtype))


def _blocks(q: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Block scales (DeepSeek style): one for each tile of the weight, the last tiles cut short."""
    if scale.dim() < 2:
        return q.float() * scale.float()
    tile = [-(-q.shape[i] // scale.shape[i]) for i in range(2)]
    tile = [1 << (t - 1).bit_length() for t in tile]  # tiles are powers of two; 128 in practice
    wide = scale.float().repeat_interleave(tile[0], 0).repeat_interleave(tile[1], 1)
    return q.float() * wide[: q.shape[0], : q.shape[1]]


def dequantised(linear: Linear, dtype: torch.dtype) -> DenseWeight:
    """The same layer as a dense one."""
    if isinstance(linear, DenseWeight):
        return linear
    if isinstance(linear, GroupedWeight):
        return groups.dequantize(linear, dtype)
    return DenseWeight((linear.q.float() * linear.scale[:, None]).to(dtype), linear.bias)


def joined(parts: list[Linear], bias: torch.Tensor | None, dtype: torch.dtype) -> Linear:
    """Layers that read the same input as one, their outputs back to back; mixed kinds are dequantised."""
    if all(isinstance(p, Int8Weight) for p in parts):
        eight = [p for p in parts if isinstance(p, Int8Weight)]
        if len({p.dynamic_activations for p in eight}) == 1:
            q, scale = torch.cat([p.q for p in eight]), torch.cat([p.scale for p in eight])
            return Int8Weight(q, scale, bias, eight[0].dynamic_activations)
    if all(isinstance(p, Fp8Weight) for p in parts):
        eights = [p for p in parts if isinstance(p, Fp8Weight)]
        return Fp8Weight(torch.cat([p.q for p in eights]), torch.cat([p.scale for p in eights]), bias)
    if all(isinstance(p, GroupedWeight) for p in parts):
        together = groups.join([p for p in parts if isinstance(p, GroupedWeight)], bias)
        if together is not None:
            return together
    return DenseWeight(torch.cat([dequantised(p, dtype).weight for p in parts]), bias)


def moved(linear: Linear, device: torch.device) -> Linear:
    """The same layer in memory of its own on `device` (what a checkpoint's memory map gave must not be kept)."""

    def own(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(device, copy=True)

    if isinstance(linear, DenseWeight):
        return DenseWeight(own(linear.weight), linear.bias)
    if isinstance(linear, GroupedWeight):
        minimum = None if linear.minimum is None else own(linear.minimum)
        return replace(linear, q=own(linear.q), scale=own(linear.scale), minimum=minimum)
    return replace(linear, q=own(linear.q), scale=own(linear.scale))
