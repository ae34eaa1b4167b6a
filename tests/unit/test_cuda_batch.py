"""The indices of a small step in their fixed places: what a captured step reads is what an uploaded one would."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from inferoptim.engine import cuda_batch
from inferoptim.engine.cuda_batch import StaticVarlen, TiledIndices, to_device
from inferoptim.engine.runner import Runner, StepIndices
from inferoptim.engine.step import ScheduledSequence
from inferoptim.models.tiles import tile_arrays

CPU = torch.device("cpu")
TILE = 4


class NoEvent:
    def synchronize(self) -> None: ...


def step(counts: list[int], contexts: list[int], wanted: list[int]) -> TiledIndices:
    total = sum(counts)
    ints = np.arange(100, 100 + total, dtype=np.int32)
    indices = StepIndices(
        token_ids=ints,
        positions=ints + 1,
        slot_mapping=ints + 2,
        query_start=np.cumsum([0, *counts]).astype(np.int32),
        context_lens=np.array(contexts, dtype=np.int32),
        block_tables=np.arange(len(counts) * 5, dtype=np.int32).reshape(-1, 5) + 7,
        logit_rows=np.array(wanted, dtype=np.int32),
        max_query_len=max(counts),
        max_context_len=max(contexts),
    )
    return TiledIndices.of(indices, np.arange(len(wanted), dtype=np.int32), TILE)


def test_tiles_cover_every_query_once_and_the_wanted_ones_hold_the_wanted_tokens() -> None:
    starts = np.array([0, 9, 10, 18], dtype=np.int32)
    contexts = np.array([9, 30, 8], dtype=np.int32)
    sequence, wanted_sequence, start, wanted_start = tile_arrays(
        starts, TILE, contexts, np.array([8, 9, 12, 13])
    )
    covered = [starts[s] + at + i for s, at in zip(sequence, start, strict=True) for i in range(TILE)]
    inside = [t for t, s in zip(covered, np.repeat(sequence, TILE), strict=True) if t < starts[s + 1]]
    assert sorted(inside) == list(range(18))
    assert (sequence[0], sequence[1], start[1]) == (1, 0, 8), "most context first"
    assert list(zip(wanted_sequence, wanted_start, strict=True)) == [(1, 0), (0, 8), (2, 0)]
    none = tile_arrays(starts, TILE, contexts, np.zeros(0, dtype=np.int32))
    assert none[1].size == none[3].size == 0


@pytest.mark.parametrize("wanted", [[], [10], [3, 4, 5, 10], list(range(11))])
def test_one_sequence_alone_is_cut_as_beside_another(wanted: list[int]) -> None:
    rows = np.array(wanted, dtype=np.int32)
    starts = np.array([0, 11, 12], dtype=np.int32)
    alone = tile_arrays(starts[:2], TILE, np.array([40], dtype=np.int32), rows)
    both = tile_arrays(starts, TILE, np.array([40, 1], dtype=np.int32), rows)
    first = both[0] == 0
    assert [a.tolist() for a in alone] == [
        x.tolist() for x in (both[0][first], both[1], both[2][first], both[3])
    ]
    assert all(a.dtype == np.int32 for a in alone)


@pytest.mark.parametrize(
    "s",
    [
        ScheduledSequence(1, 3, 6, 5, True),
        ScheduledSequence(2, 0, 9, 0, False),
        ScheduledSequence(2, 4, 7, 0, True),
    ],
)
@pytest.mark.parametrize("want_all", [False, True])
def test_indices_of_one_sequence_are_those_it_has_beside_another(
    s: ScheduledSequence, want_all: bool
) -> None:
    runner = Runner.__new__(Runner)
    runner._kv = SimpleNamespace(block_size=4)  # type: ignore[assignment]
    runner._token_ids = np.arange(60, dtype=np.int32).reshape(3, 20)
    runner._block_tables = np.arange(7, 22, dtype=np.int32).reshape(3, 5)
    other = ScheduledSequence(0, 0, 2, 0, False)
    alone, counts = runner._indices((s,), np.array([s.slot], dtype=np.int32), [want_all])
    both, both_counts = runner._indices((s, other), np.array([s.slot, 0], dtype=np.int32), [want_all, False])
    n, width = s.num_tokens, alone.block_tables.shape[1]
    assert counts == both_counts[:1]
    for name in ("token_ids", "positions", "slot_mapping"):
        assert getattr(alone, name).tolist() == getattr(both, name)[:n].tolist()
    assert alone.query_start.tolist() == [0, n]
    assert alone.context_lens.tolist() == [s.start + n]
    assert alone.block_tables.tolist() == both.block_tables[:1, :width].tolist()
    assert width == -(-(s.start + n) // 4)
    assert alone.logit_rows.tolist() == both.logit_rows.tolist()
    assert (alone.max_query_len, alone.max_context_len) == (n, s.start + n)
    before = alone.token_ids.copy()
    runner._token_ids[:] = 0
    assert (alone.token_ids == before).all(), "a step's indices are its own"


def test_a_step_in_its_fixed_places_is_the_step_that_is_uploaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_batch, "recorded_event", NoEvent)
    static = StaticVarlen((16, 64), 12, 16, TILE, 64, CPU)
    crowded = step([6] * 9, [30] * 9, list(range(54)))  # nine sequences that verify five proposals each
    short = step([3, 1], [3, 20], [2, 3])
    assert static.holds(crowded, 64)
    assert not static.holds(step([1] * 13, [2] * 13, [0]), 16)
    for filled, size in ((crowded, 64), (short, 16), (crowded, 64)):
        static.fill(filled, size)
        batch, tiles, slots = static.views(size)
        other, other_tiles, other_slots = to_device(filled, CPU)
        tokens, rows = other.token_ids_T.numel(), other.logit_rows_R.numel()
        sequences = other.context_lens_S.numel()
        for name in ("token_ids_T", "positions_T", "slot_mapping_T"):
            assert torch.equal(getattr(batch, name)[:tokens], getattr(other, name))
        assert (batch.slot_mapping_T[tokens:] == -1).all()
        assert torch.equal(batch.logit_rows_R[:rows], other.logit_rows_R)
        assert torch.equal(slots[:rows], other_slots)
        assert (slots[rows:] == -1).all()
        assert torch.equal(batch.query_start[: sequences + 1], other.query_start)
        assert torch.equal(batch.context_lens_S[:sequences], other.context_lens_S)
        assert torch.equal(batch.block_tables_SM[:sequences, :5], other.block_tables_SM[:, :5])
        for part in ("sequence", "wanted_sequence", "start", "wanted_start"):
            mine, theirs = getattr(tiles, part), getattr(other_tiles, part)
            assert torch.equal(mine[: theirs.numel()], theirs)
        for owners, real in (
            (tiles.sequence, other_tiles.sequence), (tiles.wanted_sequence, other_tiles.wanted_sequence),
        ):  # fmt: skip
            assert (owners[real.numel() :] == -1).all()
