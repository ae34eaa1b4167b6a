"""How much of the prompts was seen before, and what an LRU prefix cache of each size would have hit: in one pass.

The cache that is described: blocks of a fixed number of tokens; a request hits the longest run of its leading blocks
that are in the cache when it arrives; all its blocks then count as just used, the earlier ones more recently than the
later ones (engines free a sequence from its tail, so that what others can share goes last); a cache of C blocks holds
the C most recently used ones. One stack distance per block then gives the hits of every C at once.

Source: Mattson, Gecsei, Slutz, Traiger 1970 (stack distance); sampling above the budget: SHARDS, Waldspurger et al. 2015.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from inferoptim.audit.blocks import BlockSums, ratio
from inferoptim.audit.rows import Ints
from inferoptim.records.audit_record import CachePoint, PrefixRecord

BUDGET = 1 << 22  # block accesses kept; about 100 bytes each while the distances are computed
CURVE_POINTS = 40
_MIX = np.uint64(0x9E3779B97F4A7C15)
_COLD = np.iinfo(np.int64).max // 4


class PrefixReuse:
    """Collects the leading blocks of prompts in order of arrival.

    Args:
        block_tokens: tokens of one block.
        basis: what a block is made of, as recorded.
        budget: block accesses kept; above it, blocks are sampled by hash and distances scaled.
    """

    def __init__(self, block_tokens: int, basis: str = "block_ids", budget: int = BUDGET) -> None:
        self.block_tokens, self.basis, self._budget = block_tokens, basis, budget
        self._ids: list[Ints] = []
        self._request: list[Ints] = []
        self._position: list[Ints] = []
        self._prompt: list[Ints] = []
        self._held: list[Ints] = []  # prompt tokens of each request that lie in its blocks
        self._kept = 0
        self._halvings = 0
        self._requests = 0
        self._accesses = 0

    def add(self, blocks: Sequence[Ints], prompt_tokens: Ints) -> None:
        """Append requests: the ids of their leading blocks, and their whole length [n]."""
        if not len(blocks):
            return
        sizes = np.array([len(b) for b in blocks], dtype=np.int64)
        ids = np.concatenate(list(blocks)).astype(np.int64) if sizes.sum() else np.zeros(0, dtype=np.int64)
        request = np.repeat(np.arange(self._requests, self._requests + len(blocks)), sizes)
        position = np.arange(len(ids)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        self._requests += len(blocks)
        self._accesses += len(ids)
        lengths = np.asarray(prompt_tokens, dtype=np.int64)
        self._prompt.append(lengths)
        self._held.append(np.minimum(lengths, sizes * self.block_tokens))
        if self._halvings:
            keep = self._sampled(ids)
            ids, request, position = ids[keep], request[keep], position[keep]
        self._ids.append(ids)
        self._request.append(request)
        self._position.append(position)
        self._kept += len(ids)
        while self._kept > self._budget:
            self._halve()

    def _sampled(self, ids: Ints) -> NDArray[np.bool_]:
        mixed = (ids.view(np.uint64) ^ (ids.view(np.uint64) >> np.uint64(31))) * _MIX
        mixed = (mixed ^ (mixed >> np.uint64(29))) * _MIX
        return np.asarray(mixed >> np.uint64(64 - self._halvings) == 0)

    def _halve(self) -> None:
        self._halvings += 1
        ids = np.concatenate(self._ids)
        keep = self._sampled(ids)
        self._ids = [ids[keep]]
        self._request = [np.concatenate(self._request)[keep]]
        self._position = [np.concatenate(self._position)[keep]]
        self._kept = len(self._ids[0])

    def distances(self) -> tuple[Ints, Ints, Ints]:
        """(request [m], tokens [m], blocks that a cache needs to hit this access [m]; very large where never seen)."""
        ids = np.concatenate(self._ids) if self._ids else np.zeros(0, dtype=np.int64)
        request = np.concatenate(self._request) if self._ids else ids
        position = np.concatenate(self._position) if self._ids else ids
        prompt = np.concatenate(self._prompt) if self._prompt else ids
        room = prompt[request] - position * self.block_tokens if len(ids) else ids
        tokens = np.clip(room, 0, self.block_tokens)
        needed = leading_distances(request, ids)
        return request, tokens, np.where(needed < _COLD, needed << self._halvings, _COLD)

    def describe(self) -> PrefixRecord | None:
        """The record; None without any block."""
        if not self._requests or not self._accesses:
            return None
        request, tokens, distance = self.distances()
        prompt = np.concatenate(self._prompt).astype(np.float64)
        scale = float(1 << self._halvings)
        held = np.concatenate(self._held).astype(np.float64)
        # counted by what was missed: a sample without one of the few hottest blocks would lose most of the hits
        # (SHARDS-adj, Waldspurger et al. 2015, section 3.2); without sampling it is the same
        missed = np.bincount(request, weights=np.where(distance < _COLD, 0, tokens), minlength=self._requests)
        hit_tokens = held - missed * scale
        sums = BlockSums("hit", "prompt", "any")
        sums.add(
            hit=np.asarray(hit_tokens, dtype=np.float64),
            prompt=prompt,
            any=(hit_tokens > 0).astype(np.float64),
        )
        reusable = sums.interval(ratio("hit", "prompt"), "prefix")
        if reusable is None:
            return None
        sampled = np.concatenate(self._ids)
        return PrefixRecord(
            basis=self.basis,
            block_tokens=self.block_tokens,
            requests=self._requests,
            accesses=self._accesses,
            distinct_blocks=round(len(np.unique(sampled)) * scale),
            reusable=reusable,
            requests_with_hit=sums.total("any") / self._requests,
            curve=self._curve(tokens, distance, float(prompt.sum()), scale, float(held.sum())),
            sampled_share=1 / scale,
        )

    def _curve(
        self, tokens: Ints, distance: Ints, prompt: float, scale: float, held: float
    ) -> tuple[CachePoint, ...]:
        short = held - scale * float(tokens.sum())  # what the sample lacks, as hits; 0 without sampling
        warm = distance < _COLD
        order = np.argsort(distance[warm], kind="stable")
        needed, gained = distance[warm][order], np.cumsum(tokens[warm][order])
        if not len(needed):
            return ()
        largest = int(needed[-1])
        sizes = np.unique(np.round(np.geomspace(1, largest, CURVE_POINTS)).astype(np.int64))
        points = []
        for size in sizes.tolist():
            found = int(np.searchsorted(needed, size, side="right"))
            hits = max((float(gained[found - 1]) * scale if found else 0.0) + short, 0.0)
            points.append(CachePoint(blocks=size, tokens=size * self.block_tokens, hit_rate=hits / prompt))
        return tuple(points)


def leading_distances(request: Ints, ids: Ints) -> Ints:
    """Cache size, in blocks, from which each access is part of a hit leading run.

    Args:
        request: number of the request of each access [m], ascending.
        ids: block of each access [m], in prompt order inside a request.

    Returns:
        [m]; at least `_COLD` where no size suffices, because this block or one before it was never seen.
    """
    m = len(ids)
    if not m:
        return np.zeros(0, dtype=np.int64)
    _, dense = np.unique(ids, return_inverse=True)
    # a block named twice in one request is touched once, at its first place
    key = request.astype(np.int64) * (int(dense.max()) + 1) + dense
    _, first, copy = np.unique(key, return_index=True, return_inverse=True)
    owner = request[first]
    # touches in time: requests in order, inside each the last block first, so that the first ends on top
    order = np.lexsort((-first, owner))
    block, of_request = dense[first][order], owner[order]
    touches = len(order)
    previous = np.full(touches, -1, dtype=np.int64)
    by_block = np.argsort(block, kind="stable")
    same = block[by_block][1:] == block[by_block][:-1]
    previous[by_block[1:][same]] = by_block[:-1][same]
    starts = np.searchsorted(of_request, of_request)
    # blocks above: touched last in (previous, start) = touches k < start with previous[k] <= previous, minus those
    # up to `previous` itself, which all qualify
    warm = np.flatnonzero(previous >= 0)
    needed = np.full(touches, _COLD, dtype=np.int64)
    ranks = count_smaller(previous + 1, starts[warm], previous[warm] + 2)
    needed[warm] = ranks - previous[warm]
    back = np.empty(touches, dtype=np.int64)
    back[order] = needed
    distance = back[copy]
    # a run is hit as far as its hardest block: running maximum inside each request
    group = np.cumsum(np.diff(request, prepend=request[0]) != 0)
    capped = np.minimum(distance, touches + 1)
    running = np.maximum.accumulate(capped + group * (touches + 2)) - group * (touches + 2)
    return np.where(running > touches, _COLD, running)


def count_smaller(values: Ints, stops: Ints, bounds: Ints) -> Ints:
    """For each query: how many of values[:stop] are below bound. O((n + q) log n), vectorised.

    Args:
        values: [n], 0 ≤ value ≤ n.
        stops, bounds: [q].

    Source: wavelet matrix, Claude, Navarro, Ordóñez 2015 (rank of a value in a prefix).
    """
    bits = max(len(values).bit_length(), 1)
    count = np.zeros(len(stops), dtype=np.int64)
    at = np.asarray(stops, dtype=np.int64)
    begin = np.zeros(len(stops), dtype=np.int64)  # of the query's node in this level
    level = values
    over = bounds > (1 << bits) - 1  # every value is below such a bound
    for bit in range(bits - 1, -1, -1):
        zero = ((level >> bit) & 1) == 0
        rank = np.concatenate([[0], np.cumsum(zero)])
        zeros = int(rank[-1])
        low, high = rank[begin], rank[at]
        one = ((bounds >> bit) & 1) == 1
        count += np.where(one, high - low, 0)
        begin = np.where(one, zeros + begin - low, low)
        at = np.where(one, zeros + at - high, high)
        level = np.concatenate([level[zero], level[~zero]])
    return np.where(over, stops, count)
