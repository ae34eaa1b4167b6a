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
    query_start: np.ndarray, tile_tokens: int, logit_rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The fields of `Tiles`, in order; the longest sequences' tiles are not reordered.

    Args:
        query_start: int32 [S + 1].
        logit_rows: int32 [R]: tokens of the step.
    """
    tiles = -(-np.diff(query_start) // tile_tokens)
    sequence = np.repeat(np.arange(tiles.size, dtype=np.int32), tiles)
    first = np.cumsum(tiles) - tiles
    start = ((np.arange(sequence.size) - first[sequence]) * tile_tokens).astype(np.int32)
    owner = np.searchsorted(query_start, logit_rows, side="right") - 1
    wanted = np.unique(first[owner] + (logit_rows - query_start[owner]) // tile_tokens)
    return sequence, sequence[wanted], start, start[wanted]
