"""Weights in groups of input channels: made from a dense layer, from GGUF blocks, joined, and taken back to dense.

The native kernels take groups of 32 or 64 channels, because that is also how far an activation scale reaches; larger
groups are cut into such ones, each with a copy of the scale.

Legend: N output features · K input features · G groups of input features.
"""

from __future__ import annotations

import torch

from inferoptim.kernels.reference import dequantize_groups
from inferoptim.quant.formats import DenseWeight, GroupedWeight

GROUP = 32  # of what is quantised here: ggml's
_LARGEST = 64
_ELEMENTS = 1 << 18  # converted together: 1 MiB in float32

# ggml block type -> (bytes of a block of 32 elements, bits, zero point, whether it stores a minimum)
BLOCKS = {"Q4_0": (18, 4, 8, False), "Q4_1": (20, 4, 0, True), "Q8_0": (34, 8, 128, False)}


def group_size_for(k: int, stated: int) -> int | None:
    """The group size that the kernels use for weights whose scales cover `stated` of K channels; None: none fits."""
    if stated <= 0 or k % stated:
        return None
    return next((g for g in (_LARGEST, GROUP) if stated % g == 0), None)


def from_blocks(raw: torch.Tensor, kind: str) -> GroupedWeight:
    """The blocks of a GGUF tensor, value for value.

    Args:
        raw: uint8 [N, G * bytes of a block].
        kind: a key of `BLOCKS`.

    Source: ggml ``block_q4_0``, ``block_q4_1`` and ``block_q8_0``: scale (and minimum) as float16, then the elements;
    of 4 bits, element i in the low half of byte i and element i + 16 in its high half.
    """
    size, bits, zero, has_minimum = BLOCKS[kind]
    n = raw.shape[0]
    blocks = raw.view(n, -1, size)
    head = 4 if has_minimum else 2
    halves = blocks[..., :head].contiguous().view(torch.float16)
    content = blocks[..., head:]
    q = torch.empty(n, blocks.shape[1], GROUP, dtype=torch.uint8)
    if bits == 4:
        torch.bitwise_and(content, 15, out=q[..., :16])
        torch.bitwise_right_shift(content, 4, out=q[..., 16:])
    else:
        torch.bitwise_xor(content, 128, out=q)  # int8 as its value + 128
    minimum = halves[..., 1].contiguous() if has_minimum else None
    return GroupedWeight(q.flatten(1), halves[..., 0].contiguous(), minimum, zero, bits)


def quantize_groups(weight: DenseWeight, bits: int) -> GroupedWeight | None:
    """Round a dense layer to the nearest: 4 bits between each group's extremes, or 8 bits around zero.

    A layer that was made of such blocks comes back as them, up to the rounding of the dense values.

    Returns:
        None where groups of `GROUP` do not divide K.
    """
    dense = weight.weight
    n, k = dense.shape
    if k % GROUP:
        return None
    q = torch.empty(n, k // GROUP, GROUP, dtype=torch.uint8)
    large = float(dense.abs().amax()) > torch.finfo(torch.float16).max
    scale = torch.empty(n, k // GROUP, dtype=torch.float32 if large else torch.float16)  # as ggml stores them
    minimum = torch.empty_like(scale) if bits == 4 else None
    step = max(1, _ELEMENTS // k)  # some rows at a time: float32 copies that stay in the cache
    for row in range(0, n, step):
        rows = slice(row, row + step)
        groups = dense[rows].float().reshape(-1, k // GROUP, GROUP)
        if minimum is not None:
            low, high = groups.aminmax(dim=-1)
            minimum[rows], scale[rows] = low, (high - low) / 15
            shifted = groups - minimum[rows].float()[..., None]
        else:
            scale[rows] = groups.abs().amax(-1) / 127
            shifted = groups
        wide = scale[rows].float()
        ratio = (shifted / torch.where(wide == 0, 1.0, wide)[..., None]).round_()
        # the rounding of a scale may push an extreme half a step out of range
        q[rows] = (ratio.clamp_(0, 15) if bits == 4 else ratio.clamp_(-127, 127).add_(128)).to(torch.uint8)
    return GroupedWeight(q.flatten(1), scale, minimum, 0 if bits == 4 else 128, bits, weight.bias)


def from_integers(
    q_NK: torch.Tensor, scale_NG: torch.Tensor, zero_NG: torch.Tensor | None, bits: int
) -> GroupedWeight | None:
    """The integers of a quantised checkpoint: ``scale * (q - zero)``.

    Args:
        q_NK: signed, in [-2^(bits - 1), 2^(bits - 1)).
        scale_NG: one for each group of K / G channels.
        zero_NG: signed zero points; None = symmetric.

    Returns:
        None where the kernels have no groups that fit.
    """
    k = q_NK.shape[1]
    stated = k // scale_NG.shape[1]
    size = group_size_for(k, stated)
    if size is None:
        return None
    middle = 1 << (bits - 1)
    scale = scale_NG.float().repeat_interleave(stated // size, dim=1)
    if zero_NG is None:
        narrow = scale.half()
        exact = bool(torch.equal(narrow.float(), scale))
        return GroupedWeight(_unsigned(q_NK, middle), narrow if exact else scale, None, middle, bits)
    zero = (zero_NG.float() + middle).repeat_interleave(stated // size, dim=1)
    return GroupedWeight(_unsigned(q_NK, middle), scale, -zero * scale, 0, bits)


def _unsigned(q_NK: torch.Tensor, middle: int) -> torch.Tensor:
    return (q_NK.to(torch.int16) + middle).to(torch.uint8).contiguous()


def dequantize(weight: GroupedWeight, dtype: torch.dtype) -> DenseWeight:
    """The same layer as a dense one."""
    return DenseWeight(
        dequantize_groups(weight.q, weight.scale, weight.minimum, weight.zero).to(dtype), weight.bias
    )


def join(parts: list[GroupedWeight], bias: torch.Tensor | None) -> GroupedWeight | None:
    """Layers that read the same input as one, their outputs back to back, each element with the most bits of any.

    Returns:
        None where their groups differ in size.
    """
    first = parts[0]
    if len({p.group_size for p in parts}) > 1:
        return None
    q, bits = torch.cat([p.q for p in parts]), max(p.bits for p in parts)
    if len({(p.zero, p.minimum is None, p.scale.dtype) for p in parts}) == 1:
        minima = [p.minimum for p in parts if p.minimum is not None]
        scale = torch.cat([p.scale for p in parts])
        return GroupedWeight(q, scale, torch.cat(minima) if minima else None, first.zero, bits, bias)
    lows = []
    for p in parts:
        low = -p.zero * p.scale.float()
        lows.append(low if p.minimum is None else low + p.minimum.float())
    return GroupedWeight(q, torch.cat([p.scale.float() for p in parts]), torch.cat(lows), 0, bits, bias)
