"""The queries of a varlen step cut into tiles, as `attention.varlen_attention` takes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class Tiles:
    """Every tile of a step, and those that hold a token whose logits are wanted; all int32, on the device."""

    sequence: torch.Tensor  # whose it is, -1 = padding
    wanted_sequence: torch.Tensor
    start: torch.Tensor  # its first query, counted from the sequence's first
    wanted_start: torch.Tensor


def tile_arrays(
    query_start: np.ndarray, tile_tokens: int, context_lens: np.ndarray, logit_rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The fields of `Tiles`, in order; tiles with more context come first, so that none of those is left alone at the end.

    Args:
        query_start: int32 [S + 1].
        context_lens: int32 [S]: tokens, the step's included.
        logit_rows: int32 [R]: tokens of the step.
    """
    if context_lens.size == 1:  # most steps that have tiles; in a third of the time
        start = np.arange(0, int(query_start[1]), tile_tokens, dtype=np.int32)
        wanted = np.unique(logit_rows // tile_tokens) * np.int32(tile_tokens)
        return np.zeros_like(start), np.zeros_like(wanted), start[::-1], wanted[::-1]
    counts = np.diff(query_start)
    tiles = -(-counts // tile_tokens)
    sequence = np.repeat(np.arange(tiles.size, dtype=np.int32), tiles)
    first = np.cumsum(tiles) - tiles
    start = ((np.arange(sequence.size) - first[sequence]) * tile_tokens).astype(np.int32)
    owner = np.searchsorted(query_start, logit_rows, side="right") - 1
    wanted = np.unique(first[owner] + (logit_rows - query_start[owner]) // tile_tokens)
    before = (context_lens - counts)[sequence] + start
    order = np.argsort(-before, kind="stable")
    wanted = wanted[np.argsort(-before[wanted], kind="stable")]
    return sequence[order], sequence[wanted], start[order], start[wanted]
