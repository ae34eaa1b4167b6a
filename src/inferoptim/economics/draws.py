"""Unit draws that Python and JavaScript compute alike, so that the simulator shows the intervals of the command line.

A counter-based generator: draw number i of the stream `name` is a hash of i and of the name. No state, so the first
n of 10 000 draws are the n draws, and adding an input leaves the streams of the others alone.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MASK = 0xFFFFFFFF


def mix32(value: int) -> int:
    """A bijection of 32-bit numbers in which every input bit flips about half of the output bits.

    Source: the "lowbias32" multipliers and shifts found by exhaustive search (Wellons, hash-prospector, 2022).
    """
    value &= MASK
    value ^= value >> 16
    value = value * 0x21F0AAAD & MASK
    value ^= value >> 15
    value = value * 0x735A2D97 & MASK
    return value ^ value >> 15


def stream_key(name: str, seed: int = 0) -> int:
    """What tells the stream of `name` under `seed` from all others; the simulator receives it with the inputs."""
    return zlib.crc32(name.encode()) ^ mix32(seed + 1)


def unit_draws(key: int, count: int) -> NDArray[np.float64]:
    """`count` numbers in ]0, 1[, uniform: cell centres of a grid of 2^32, which keeps 0 and 1 out."""
    import numpy as np

    value = np.arange(1, count + 1, dtype=np.uint32)
    for step in range(
        2
    ):  # hashed, joined with the key, hashed again: two streams are not shifts of each other
        value ^= value >> np.uint32(16)
        value *= np.uint32(0x21F0AAAD)
        value ^= value >> np.uint32(15)
        value *= np.uint32(0x735A2D97)
        value ^= value >> np.uint32(15)
        if step == 0:
            value ^= np.uint32(key)
    return (value.astype(np.float64) + 0.5) / 4294967296.0
