"""The hit-rate curve against a brute-force LRU cache, for every cache size; and the rank structure behind it."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from inferoptim.audit.prefix import PrefixReuse, count_smaller, leading_distances

BLOCKS = st.lists(st.lists(st.integers(0, 9), max_size=7), min_size=1, max_size=14)


def lru_hits(requests: list[list[int]], capacity: int) -> list[int]:
    """Leading blocks found by each request in a cache of `capacity` blocks, simulated literally."""
    cache: OrderedDict[int, None] = OrderedDict()  # least recently used first
    hits = []
    for blocks in requests:
        run = 0
        while run < len(blocks) and blocks[run] in cache:
            run += 1
        hits.append(run)
        for block in reversed(blocks):
            cache.pop(block, None)
            cache[block] = None
        while len(cache) > capacity:
            cache.popitem(last=False)
    return hits


@given(BLOCKS)
@settings(max_examples=300, deadline=None)
def test_distances_equal_a_simulated_lru_at_every_size(requests):
    owner = np.repeat(np.arange(len(requests)), [len(r) for r in requests])
    needed = leading_distances(owner, np.array([b for r in requests for b in r], dtype=np.int64))
    for capacity in range(12):
        found = np.bincount(owner, weights=needed <= capacity, minlength=len(requests))
        assert found.tolist() == lru_hits(requests, capacity)


@given(BLOCKS, st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_curve_equals_a_simulated_lru_in_tokens(requests, tail):
    """Through the public record, with prompts whose last block is not full."""
    size = 4
    prompts = [max(len(r) * size - tail, 0) for r in requests]
    reuse = PrefixReuse(size)
    half = len(requests) // 2
    for part in (slice(0, half), slice(half, None)):  # in two batches
        reuse.add(
            [np.array(r, dtype=np.int64) for r in requests[part]], np.array(prompts[part], dtype=np.int64)
        )
    record = reuse.describe()
    if record is None:
        return
    assert record.sampled_share == 1
    for point in record.curve:
        hits = lru_hits(requests, point.blocks)
        tokens = sum(
            min(size, max(prompt - i * size, 0))
            for n, prompt in zip(hits, prompts, strict=True)
            for i in range(n)
        )
        assert (
            point.hit_rate * sum(prompts) == np.float64(tokens)
            or abs(point.hit_rate * sum(prompts) - tokens) < 1e-9
        )


@given(st.lists(st.integers(0, 40), min_size=1, max_size=40), st.data())
@settings(max_examples=200, deadline=None)
def test_count_smaller_equals_counting(values, data):
    n = len(values)
    array = np.minimum(np.array(values), n)
    queries = data.draw(
        st.lists(st.tuples(st.integers(0, n), st.integers(0, n + 3)), min_size=1, max_size=10)
    )
    stops, bounds = (np.array(column) for column in zip(*queries, strict=True))
    expected = [int((array[:s] < b).sum()) for s, b in queries]
    assert count_smaller(array, stops, bounds).tolist() == expected
