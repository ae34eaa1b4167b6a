"""The prefix cache: what a name covers, who is found, who is evicted first."""

from __future__ import annotations

from inferoptim.engine.blocks import BlockAllocator
from inferoptim.engine.prefix_cache import PrefixCache


def chain_of(cache: PrefixCache, tokens: list[int], salt: int = 0, size: int = 2) -> list[bytes]:
    chain: list[bytes] = []
    cache.extend_chain(chain, tokens, len(tokens) // size, salt)
    return chain


def test_a_name_covers_the_whole_prefix_and_the_salt() -> None:
    cache = PrefixCache(BlockAllocator(4, 2))
    a, b = chain_of(cache, [1, 2, 3, 4]), chain_of(cache, [9, 2, 3, 4])
    assert a[1] != b[1], "equal tokens after different ones have other KV"
    assert chain_of(cache, [1, 2, 3, 4]) == a
    assert not set(a) & set(chain_of(cache, [1, 2, 3, 4], salt=1))
    assert chain_of(cache, [12, 1])[0] != chain_of(cache, [1, 21])[0], "digits must not run together"


def test_a_chain_extended_in_pieces_equals_one_made_at_once() -> None:
    cache = PrefixCache(BlockAllocator(4, 2))
    tokens = [5, 4, 3, 2, 1, 0]
    chain: list[bytes] = []
    for blocks in (1, 1, 3, 2):
        cache.extend_chain(chain, tokens, blocks, 7)
    assert chain == chain_of(cache, tokens, salt=7)


def test_lookup_finds_the_longest_published_prefix_and_no_island_behind_a_gap() -> None:
    blocks = BlockAllocator(8, 2)
    cache = PrefixCache(blocks)
    chain = chain_of(cache, [1, 2, 3, 4, 5, 6])
    table = blocks.allocate(3)
    cache.publish(chain, table, 0, 1)
    cache.publish(chain, table, 2, 3)
    assert cache.lookup(chain, 3) == table[:1]
    cache.publish(chain, table, 1, 2)
    assert cache.lookup(chain, 3) == table
    assert cache.lookup(chain, 2) == table[:2]
    assert cache.lookup(chain_of(cache, [1, 2, 3, 9]), 2) == table[:1]


def test_content_computed_twice_is_published_once() -> None:
    blocks = BlockAllocator(4, 2)
    cache = PrefixCache(blocks)
    chain = chain_of(cache, [1, 2])
    first, second = blocks.allocate(1), blocks.allocate(1)
    cache.publish(chain, first, 0, 1)
    cache.publish(chain, second, 0, 1)
    assert cache.lookup(chain, 1) == first
    blocks.release(second)
    assert blocks.num_cached == 0, "the private copy is worth nothing"
    blocks.release(first)
    assert blocks.num_cached == 1
    cache.check(set())


def test_an_evicted_block_is_found_no_more_and_the_tail_goes_first() -> None:
    blocks = BlockAllocator(3, 2)
    cache = PrefixCache(blocks)
    chain = chain_of(cache, [1, 2, 3, 4, 5, 6])
    table = blocks.allocate(3)
    cache.publish(chain, table, 0, 3)
    blocks.release(table)
    assert blocks.allocate(1) == table[2:]
    assert cache.lookup(chain, 3) == table[:2]
    cache.check(set())
    assert len(cache) == 2


def test_announced_blocks_count_until_published_or_withdrawn() -> None:
    blocks = BlockAllocator(4, 2)
    cache = PrefixCache(blocks)
    chain = chain_of(cache, [1, 2, 3, 4, 5, 6])
    cache.announce(chain, 0)
    assert cache.count_announced(chain, 0, 3) == 3
    assert cache.count_announced(chain_of(cache, [1, 2, 3, 4, 0, 0]), 0, 3) == 2
    cache.publish(chain, blocks.allocate(3), 0, 1)
    assert cache.count_announced(chain, 0, 3) == 0
    assert cache.count_announced(chain, 1, 3) == 2
    cache.withdraw(chain, 1)
    assert cache.count_announced(chain, 1, 3) == 0


def test_reset_forgets_everything() -> None:
    blocks = BlockAllocator(4, 2)
    cache = PrefixCache(blocks)
    chain = chain_of(cache, [1, 2, 3, 4])
    table = blocks.allocate(2)
    cache.publish(chain, table, 0, 2)
    blocks.release(table)
    cache.reset()
    assert len(cache) == 0
    assert cache.lookup(chain, 2) == []
    assert (blocks.num_cached, blocks.num_free) == (0, 4)
    cache.check(set())
