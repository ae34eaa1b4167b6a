"""How quantised checkpoints lay out their integers: compressed-tensors, GPTQ and AWQ, bit by bit.

Legend: N output features · K input features · G groups of input features.
"""

from __future__ import annotations

import torch

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the place of element i in an int32 of AWQ


def pack_rows(q_NK: torch.Tensor, bits: int) -> torch.Tensor:
    """compressed-tensors ``weight_packed``: signed values as unsigned (plus half the range), low bits first.

    Args:
        q_NK: integers in [-2^(bits-1), 2^(bits-1)); `bits` is 4 or 8.

    Returns:
        int32 [N, ceil(K * bits / 32)]; missing values at a row's end are zero bits.
    """
    per_word = 32 // bits
    unsigned = q_NK.to(torch.int64) + (1 << (bits - 1))
    padded = torch.nn.functional.pad(unsigned, (0, -unsigned.shape[1] % per_word))
    shifts = torch.arange(per_word, dtype=torch.int64) * bits
    return _as_int32((padded.reshape(len(padded), -1, per_word) << shifts).sum(-1))


def unpack_rows(packed: torch.Tensor, bits: int, k: int) -> torch.Tensor:
    """Inverse of `pack_rows`: int8 [N, k]."""
    shifts = torch.arange(32 // bits, dtype=torch.int32) * bits
    values = (packed[..., None] >> shifts) & ((1 << bits) - 1)
    return (values.flatten(1)[:, :k] - (1 << (bits - 1))).to(torch.int8)


def unpack_columns(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """GPTQ ``qweight`` [K * bits / 32, N]: unsigned int32 [K, N]."""
    shifts = torch.arange(32 // bits, dtype=torch.int32) * bits
    values = (packed[:, None, :] >> shifts[None, :, None]) & ((1 << bits) - 1)
    return values.flatten(0, 1)


def unpack_words(packed: torch.Tensor, bits: int, *, awq: bool = False) -> torch.Tensor:
    """Unsigned integers packed along the last dimension: int32 [R, C * 32 / bits] (GPTQ zeros; AWQ weights and zeros)."""
    per_word = 32 // bits
    order = torch.tensor(_AWQ_ORDER if awq else range(per_word), dtype=torch.int32)
    places = torch.empty_like(order)
    if awq:
        places[order.long()] = torch.arange(per_word, dtype=torch.int32)
    else:
        places = order
    values = (packed[..., None] >> (places * bits)) & ((1 << bits) - 1)
    return values.flatten(1)


def _as_int32(words: torch.Tensor) -> torch.Tensor:
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
