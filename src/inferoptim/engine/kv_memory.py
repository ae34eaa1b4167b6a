"""The KV memory of sequences: paged or contiguous, with or without shared prefixes. No torch.

The scheduler decides who gets memory and who loses it; this file knows how a sequence's block table is made.
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field

from inferoptim.engine.blocks import BlockAllocator, ContiguousSlots, blocks_for
from inferoptim.engine.prefix_cache import PrefixCache
from inferoptim.engine.request import FinishReason, Sequence
from inferoptim.errors import CapacityError


@dataclass(slots=True, eq=False)
class Tracked(Sequence):
    """A sequence with what only the scheduler and its memory need to know of it."""

    max_total: int = 0  # tokens, prompt + output, at which it is full
    stop_ids: frozenset[int] = frozenset()
    on_device: bool = False  # the device alone can choose its tokens
    pending: int = 0  # tokens that plans which are out will give it
    flying: int = 0  # known tokens of a prompt that plans which are out compute
    chain: list[bytes] = field(default_factory=list)  # names of its first full blocks, for the prefix cache

    def append(self, tokens: Tokens[int]) -> FinishReason | None:
        """Append tokens up to the first that ends the sequence; the reason if one does."""
        known = self.token_ids
        room = self.max_total - len(known)
        if not self.stop_ids:
            known += tokens[:room]
            return FinishReason.LENGTH if len(tokens) >= room else None
        earliest = self.num_prompt + self.request.sampling.min_tokens
        for token in tokens[:room]:
            known.append(token)
            if token in self.stop_ids and len(known) >= earliest:
                return FinishReason.STOP
        return FinishReason.LENGTH if len(tokens) >= room else None


class KVMemory:
    """Gives block tables to sequences and takes them back. Owner: the scheduler.

    Args:
        blocks: all the blocks there are.
        paged: blocks on demand; else one run of blocks for `max_model_len` tokens each.
        prefix_caching: share full blocks of equal prefixes; paged only.
        max_model_len: longest sequence, tokens.

    Raises:
        CapacityError: without paging, not even one sequence of max_model_len fits.
    """

    def __init__(
        self, blocks: BlockAllocator, *, paged: bool, prefix_caching: bool, max_model_len: int
    ) -> None:
        self.blocks = blocks
        self._size = blocks.block_size
        self._cache = PrefixCache(blocks) if prefix_caching else None
        self._slots: ContiguousSlots | None = None
        if not paged:
            needed = blocks_for(max_model_len, self._size)
            self._slots = ContiguousSlots(blocks, needed)
            if self._slots.num_slots == 0:
                raise CapacityError(
                    f"one contiguous slot for max_model_len={max_model_len} takes {needed} KV blocks, there are "
                    f"{blocks.num_blocks}: raise kv_budget_bytes, lower max_model_len or turn paged_kv on"
                )

    @property
    def paged(self) -> bool:
        """Whether a finished sequence's blocks are of use to its neighbours."""
        return self._slots is None

    def reserve(self, seq: Tracked, *, watermark: int, most: int | None, patient: bool) -> bool:
        """Give a waiting sequence memory for all its known tokens; False, and nothing changed, when it must wait.

        On success `block_table`, `num_computed` and `num_cached` are set.

        Args:
            seq: a sequence without memory.
            watermark: blocks that must stay free.
            most: refuse when more than this many tokens would be left to compute.
            patient: refuse when half of those are being computed by others and will soon be shareable.
        """
        known = len(seq.token_ids)
        hits = self._find_prefix(seq, patient)
        if hits is None or (most is not None and known - len(hits) * self._size > most):
            return False
        if self._slots is not None:
            if self._slots.num_free == 0:
                return False
            seq.block_table = self._slots.allocate()
        else:
            needed = blocks_for(known, self._size) - len(hits)
            if self.blocks.num_free - self.blocks.count_cached(hits) < needed + watermark:
                return False
            self.blocks.share(hits)
            seq.block_table = hits + self.blocks.allocate(needed)
        seq.num_computed = seq.num_cached = len(hits) * self._size
        if self._cache is not None:
            self._cache.announce(seq.chain, len(hits))
        return True

    def grow(self, seq: Tracked, count: int) -> list[int]:
        """Append `count` blocks to a table; the caller has checked that they are free."""
        fresh = self.blocks.allocate(count)
        seq.block_table += fresh
        return fresh

    def publish(self, seq: Tracked, before: int) -> None:
        """Make findable the blocks filled since `num_computed` was `before`."""
        first, last = before // self._size, seq.num_computed // self._size
        if self._cache is not None and first < last:
            self._cache.extend_chain(seq.chain, seq.token_ids, last, seq.request.cache_salt)
            self._cache.publish(seq.chain, seq.block_table, first, last)

    def free(self, seq: Tracked) -> None:
        """Take a sequence's memory; what it computed stays findable until evicted."""
        if self._cache is not None:
            self._cache.withdraw(seq.chain, seq.num_computed // self._size)
        self.free_table(seq.block_table)
        seq.block_table = []

    def free_table(self, table: list[int]) -> None:
        """Take back the memory of a table that its sequence has already left."""
        if self._slots is None:
            self.blocks.release(table)
        elif table:
            self._slots.release(table)

    def reset_prefix_cache(self) -> None:
        """Forget every cached block; no sequence runs."""
        if self._cache is not None:
            self._cache.reset()

    def check(self, running: list[Tracked], held: list[list[int]]) -> None:
        """Integrity of blocks and names, given every table in use.

        Raises:
            AssertionError: naming what disagrees.
        """
        self.blocks.check([seq.block_table for seq in running] + held)
        if self._cache is not None:
            self._cache.check(
                {digest for seq in running for digest in seq.chain[seq.num_computed // self._size :]}
            )

    def _find_prefix(self, seq: Tracked, patient: bool) -> list[int] | None:
        """Blocks to share; None when it is better to wait for more of them."""
        if self._cache is None:
            return []
        full = (len(seq.token_ids) - 1) // self._size  # at least the last token is computed, to sample from
        self._cache.extend_chain(seq.chain, seq.token_ids, full, seq.request.cache_salt)
        if seq.request.sampling.prompt_logprobs is not None:
            return []  # logits of every prompt position are wanted, and a shared block has none
        hits = self._cache.lookup(seq.chain, full)
        if patient and 2 * self._cache.count_announced(seq.chain, len(hits), full) > full - len(hits):
            return None
        return hits
