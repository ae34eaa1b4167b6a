"""Blocks: order of reuse, owners, contiguous slots, and an integrity check that does find faults."""

from __future__ import annotations

import pytest

from inferoptim.engine.blocks import BlockAllocator, ContiguousSlots, blocks_for
from inferoptim.errors import ConfigError


def test_blocks_for_rounds_up() -> None:
    assert [blocks_for(n, 4) for n in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]


@pytest.mark.parametrize(("num_blocks", "block_size"), [(0, 4), (4, 0)])
def test_sizes_are_checked(num_blocks: int, block_size: int) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        BlockAllocator(num_blocks, block_size)


def test_a_shared_block_is_free_only_after_its_last_owner() -> None:
    blocks = BlockAllocator(4, 2)
    table = blocks.allocate(2)
    blocks.share(table[:1])
    blocks.check([table, table[:1]])
    blocks.release(table)
    assert blocks.num_free == 3
    assert blocks.refcount(table[0]) == 1
    blocks.release(table[:1])
    assert blocks.num_free == 4
    blocks.check([])


def test_worthless_blocks_go_before_cached_ones_and_those_oldest_first_tail_first() -> None:
    blocks = BlockAllocator(6, 2)
    evicted: list[int] = []
    blocks.on_evict = evicted.append
    old, new = blocks.allocate(2), blocks.allocate(2)
    for block in (*old, *new):
        blocks.keep(block)
    blocks.release(old)
    blocks.release(new)
    assert (blocks.num_free, blocks.num_cached) == (6, 4)
    blocks.allocate(2)
    assert evicted == [], "free blocks were left, yet content was thrown away"
    blocks.allocate(4)
    assert evicted == [old[1], old[0], new[1], new[0]]


def test_sharing_a_cached_block_saves_it_and_renews_it() -> None:
    blocks = BlockAllocator(2, 2)
    evicted: list[int] = []
    blocks.on_evict = evicted.append
    first, second = blocks.allocate(2)
    blocks.keep(first)
    blocks.keep(second)
    blocks.release([first])
    blocks.release([second])
    assert blocks.count_cached([first, second]) == 2
    blocks.share([first])
    assert blocks.num_free == 1
    blocks.release([first])  # used later than `second` now
    blocks.allocate(1)
    assert evicted == [second]


def test_forgetting_makes_cached_blocks_free() -> None:
    blocks = BlockAllocator(3, 2)
    table = blocks.allocate(3)
    for block in table:
        blocks.keep(block)
    blocks.release(table)
    blocks.forget_all()
    assert (blocks.num_cached, blocks.num_free) == (0, 3)
    blocks.check([])


def test_slots_are_ascending_runs_and_the_lowest_comes_first() -> None:
    blocks = BlockAllocator(11, 4)
    slots = ContiguousSlots(blocks, 3)
    assert slots.num_slots == 3, "two of the eleven blocks are too few for a fourth slot"
    tables = [slots.allocate() for _ in range(3)]
    assert tables == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert slots.num_free == 0
    blocks.check(tables)
    slots.release(tables[2])
    slots.release(tables[0])
    assert slots.allocate() == [0, 1, 2]
    assert blocks.num_used == 6


def test_check_finds_a_leak_a_double_owner_and_a_block_in_two_states() -> None:
    blocks = BlockAllocator(4, 2)
    table = blocks.allocate(2)
    with pytest.raises(AssertionError, match="reference count 1, 0 owners"):
        blocks.check([])
    with pytest.raises(AssertionError, match="reference count 1, 2 owners"):
        blocks.check([table, table])
    with pytest.raises(AssertionError, match="twice in one table"):
        blocks.check([[table[0], table[0], table[1]]])
    blocks._free[table[0]] = None
    with pytest.raises(AssertionError, match="in 2 states"):
        blocks.check([table])


def test_releasing_twice_is_caught() -> None:
    blocks = BlockAllocator(2, 2)
    table = blocks.allocate(1)
    blocks.release(table)
    with pytest.raises(AssertionError, match="released more often than taken"):
        blocks.release(table)
