"""How the indices of a step reach an NVIDIA GPU: pinned buffers, one copy a step, fixed places for captured steps.

Every part of an upload starts at a multiple of 16 bytes and block tables are a multiple of 16 entries wide: kernels are
compiled for the alignment that they meet, and so they meet only one.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from inferoptim.engine.runner import StepIndices
from inferoptim.models.batch import Batch
from inferoptim.models.tiles import Tiles, tile_arrays

_ALIGN = 4  # int32 words
_TABLE_ALIGN = 16


def pinned(words: int, device: torch.device) -> torch.Tensor:
    """Host memory that `device` copies from and to on its own; int32."""
    return torch.empty(words, dtype=torch.int32, pin_memory=device.type == "cuda")


def aligned(words: int, to: int = _ALIGN) -> int:
    """The next multiple of `to`."""
    return -(-words // to) * to


def recorded_event(timing: bool = False) -> Any:
    """An event that has passed when everything launched so far is over."""
    make: Any = torch.cuda.Event
    event = make(enable_timing=timing)
    event.record()
    return event


class PinnedRing:
    """Pinned buffers in turn; one is handed out again only when the copy that used it is over."""

    def __init__(self, words: int, device: torch.device, count: int = 4) -> None:
        self._buffers = [pinned(words, device) for _ in range(count)]
        self._events: list[Any] = [None] * count
        self._at = count - 1

    def take(self) -> torch.Tensor:
        """The next buffer, after waiting for whatever still uses it."""
        self._at = (self._at + 1) % len(self._buffers)
        event = self._events[self._at]
        if event is not None:
            event.synchronize()
        return self._buffers[self._at]

    def used_until(self, event: Any) -> None:
        """The buffer taken last is in use until this event."""
        self._events[self._at] = event

    def used_now(self) -> None:
        """The buffer taken last is in use until what was launched so far is over."""
        self.used_until(recorded_event())


Uploaded = tuple[Batch, Tiles, torch.Tensor]  # and int32 [R]: whose each row of logits is


@dataclass(frozen=True, slots=True)
class TiledIndices:
    """A varlen step's indices with the tiles of its queries, and whose each wanted row of logits is."""

    indices: StepIndices
    logit_slots: np.ndarray  # int32 [R]: rows of the batch; -1 = the host chooses
    tiles: tuple[np.ndarray, ...]  # as `tile_arrays` gives them

    @classmethod
    def of(cls, indices: StepIndices, logit_slots: np.ndarray, tile_tokens: int) -> TiledIndices:
        return cls(
            indices,
            logit_slots,
            tile_arrays(indices.query_start, tile_tokens, indices.context_lens, indices.logit_rows),
        )

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """One-dimensional parts of an upload, in the order of `_batch_of`; the table is apart."""
        i = self.indices
        return (
            i.token_ids, i.positions, i.slot_mapping, i.query_start, i.context_lens, i.logit_rows, self.logit_slots,
            *self.tiles,
        )  # fmt: skip


def to_device(step: TiledIndices, device: torch.device) -> Uploaded:
    """Upload a step in one copy."""
    tables = step.indices.block_tables
    width = aligned(tables.shape[1], _TABLE_ALIGN)
    sizes = [array.size for array in step.arrays]
    starts = np.cumsum([0] + [aligned(size) for size in sizes])
    host = pinned(int(starts[-1]) + tables.shape[0] * width, device)
    words = host.numpy()
    for array, start in zip(step.arrays, starts[:-1], strict=True):
        words[start : start + array.size] = array
    words[starts[-1] :].reshape(-1, width)[:, : tables.shape[1]] = tables
    there = host.to(device, non_blocking=True)
    parts = [there[a : a + size] for a, size in zip(starts[:-1], sizes, strict=True)]
    return _batch_of(parts, there[starts[-1] :].view(-1, width), step.indices)


def _batch_of(parts: SequenceOf[torch.Tensor], tables: torch.Tensor, indices: StepIndices | None) -> Uploaded:
    token_ids, positions, slots, query_start, context_lens, logit_rows, logit_slots = parts[:7]
    batch = Batch(
        token_ids_T=token_ids,
        positions_T=positions,
        slot_mapping_T=slots,
        query_start=query_start,
        context_lens_S=context_lens,
        block_tables_SM=tables,
        logit_rows_R=logit_rows,
        max_query_len=indices.max_query_len if indices else 0,
        max_context_len=indices.max_context_len if indices else 0,
    )
    return batch, Tiles(*parts[7:]), logit_slots


class StaticVarlen:
    """Fixed places on the device for the indices of small varlen steps, one layout for each captured size.

    Args:
        sizes: numbers of tokens.
        max_sequences: most sequences of such a step.
        table_width: blocks in a table, a multiple of 16.
        tile_tokens: queries in a tile.
        max_logit_rows: rows of logits that such a step may want; every token's, when a step verifies proposals.
    """

    def __init__(
        self,
        sizes: SequenceOf[int],
        max_sequences: int,
        table_width: int,
        tile_tokens: int,
        max_logit_rows: int,
        device: torch.device,
    ) -> None:
        self._max_sequences = max_sequences
        self._max_logit_rows = max_logit_rows
        self._width = table_width
        self._tile_tokens = tile_tokens
        words = max(self._layout(size)[-1] for size in sizes) + max_sequences * table_width
        self._device_words = torch.zeros(words, dtype=torch.int32, device=device)
        self._ring = PinnedRing(words, device)

    def _sizes(self, size: int) -> list[int]:
        s = self._max_sequences
        tiles = size // self._tile_tokens + s
        rows = min(size, self._max_logit_rows)
        return [size, size, size, s + 1, s, rows, rows, *(tiles,) * 4]

    def _layout(self, size: int) -> list[int]:
        return [0, *np.cumsum([aligned(n) for n in self._sizes(size)]).tolist()]

    def holds(self, step: TiledIndices, size: int) -> bool:
        """Whether the step fits the layout of `size`."""
        return (
            step.indices.context_lens.size <= self._max_sequences
            and step.indices.logit_rows.size <= min(size, self._max_logit_rows)
            and step.indices.block_tables.shape[1] <= self._width
        )

    def views(self, size: int) -> Uploaded:
        """The places of `size`, as the decoder takes them."""
        layout, sizes = self._layout(size), self._sizes(size)
        parts = [self._device_words[a : a + n] for a, n in zip(layout[:-1], sizes, strict=True)]
        tables = self._device_words[layout[-1] : layout[-1] + self._max_sequences * self._width]
        return _batch_of(parts, tables.view(self._max_sequences, self._width), None)

    def fill(self, step: TiledIndices | None, size: int) -> None:
        """Put a step in its place; what is padded belongs to nobody and writes nothing. None: nothing but padding."""
        layout = self._layout(size)
        count = 0 if step is None else step.indices.context_lens.size
        words = layout[-1] + count * self._width  # nobody reads the tables of sequences that are not there
        host = self._ring.take()[:words]
        view = host.numpy()
        view[:] = 0
        view[layout[2] : layout[3]] = -1  # slots
        view[layout[6] : layout[9]] = -1  # whose rows of logits and tiles are
        if step is not None:
            for array, start in zip(step.arrays, layout[:-1], strict=True):
                view[start : start + array.size] = array
            view[layout[3] + count : layout[4]] = step.indices.query_start[-1]  # sequences without queries
            tables = step.indices.block_tables
            view[layout[-1] :].reshape(count, self._width)[:, : tables.shape[1]] = tables
        self._device_words[:words].copy_(host, non_blocking=True)
        self._ring.used_now()
