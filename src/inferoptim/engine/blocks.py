"""KV blocks: who owns which, which are free, and which of the free ones still hold something worth keeping.

A block is a number in [0, num_blocks); its memory belongs to the runner. A block is in exactly one of three states:
*owned* (reference count >= 1), *cached* (count 0, content still findable by the prefix cache, evictable in LRU order)
or *free* (count 0, content worthless). Cached blocks count as free memory: they are taken once no free one is left.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from inferoptim.errors import ConfigError


def blocks_for(num_tokens: int, block_size: int) -> int:
    """Blocks that `num_tokens` tokens of KV take."""
    return -(-num_tokens // block_size)


class BlockAllocator:
    """Reference-counted blocks. Every operation is O(blocks touched).

    Who may mutate: the scheduler and the prefix cache that it owns, nobody else.

    Args:
        num_blocks: blocks in the KV-cache, >= 1.
        block_size: tokens in one block, >= 1.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ConfigError(
                f"KV-cache of {num_blocks} blocks of {block_size} tokens: both must be at least 1"
            )
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.on_evict: Callable[[int], None] | None = None  # told of every cached block that is taken
        self._refs = [0] * num_blocks
        self._keep = bytearray(num_blocks)  # 1: the prefix cache can find this block's content
        # popitem() takes the most recently freed, and any given block can be removed: both O(1).
        self._free: dict[int, None] = dict.fromkeys(reversed(range(num_blocks)))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can hand out, cached ones included."""
        return len(self._free) + len(self._cached)

    @property
    def num_used(self) -> int:
        """Blocks owned by at least one sequence."""
        return self.num_blocks - self.num_free

    @property
    def num_cached(self) -> int:
        """Unowned blocks whose content can still be found."""
        return len(self._cached)

    def refcount(self, block: int) -> int:
        """Owners of `block`."""
        return self._refs[block]

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks, each with one owner; evicts the least recently used cached ones if it must.

        The caller has checked `num_free`.
        """
        assert count <= self.num_free, f"{count} blocks asked, {self.num_free} free"
        free = self._free
        taken = [free.popitem()[0] for _ in range(min(count, len(free)))]
        while len(taken) < count:
            block, _nothing = self._cached.popitem(last=False)
            self._keep[block] = 0
            if self.on_evict is not None:
                self.on_evict(block)
            taken.append(block)
        for block in taken:
            self._refs[block] = 1
        return taken

    def allocate_run(self, first: int, count: int) -> list[int]:
        """Take the blocks [first, first + count), all of which are free and not cached (contiguous KV)."""
        run = list(range(first, first + count))
        for block in run:
            del self._free[block]
            self._refs[block] = 1
        return run

    def share(self, blocks: Iterable[int]) -> None:
        """Add an owner to each of `blocks`, which are owned or cached."""
        for block in blocks:
            if self._refs[block] == 0:
                del self._cached[block]
            self._refs[block] += 1

    def release(self, table: Sequence[int]) -> None:
        """Take one owner from each block of a sequence's table, last block first.

        The tail enters the LRU queue first, so that it is evicted before the prefix it depends on.
        """
        for block in reversed(table):
            refs = self._refs[block] - 1
            assert refs >= 0, f"block {block} released more often than taken"
            self._refs[block] = refs
            if refs == 0:
                if self._keep[block]:
                    self._cached[block] = None
                else:
                    self._free[block] = None

    def keep(self, block: int) -> None:
        """From now on `block`, which is owned, keeps its content when released."""
        assert self._refs[block] > 0, f"block {block} is published by nobody"
        self._keep[block] = 1

    def forget_all(self) -> None:
        """No content is worth keeping any more: cached blocks become free."""
        self._keep = bytearray(self.num_blocks)
        self._free.update(self._cached)
        self._cached.clear()

    def count_cached(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` have no owner: sharing them takes that many from `num_free`."""
        refs = self._refs
        return sum(1 for block in blocks if refs[block] == 0)

    def is_kept(self, block: int) -> bool:
        """Whether the prefix cache can find `block`."""
        return bool(self._keep[block])

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Integrity: the given tables are exactly the owners, and every block is in exactly one state.

        Raises:
            AssertionError: naming the first block that disagrees.
        """
        owners = [0] * self.num_blocks
        for table in tables:
            assert len(set(table)) == len(table), f"a block twice in one table: {table}"
            for block in table:
                owners[block] += 1
        for block, (refs, owned) in enumerate(zip(self._refs, owners, strict=True)):
            assert refs == owned, f"block {block}: reference count {refs}, {owned} owners"
            states = (refs > 0) + (block in self._free) + (block in self._cached)
            assert states == 1, f"block {block} is in {states} states (owned, free, cached)"
            assert block not in self._free or not self._keep[block], f"free block {block} is still findable"
            assert block not in self._cached or self._keep[block], f"cached block {block} cannot be found"
        assert self.num_free + sum(refs > 0 for refs in self._refs) == self.num_blocks


class ContiguousSlots:
    """The same memory without paging: equal runs of consecutive blocks, one for each sequence, whatever its length.

    Args:
        blocks: the allocator whose blocks are cut into runs; nobody else allocates from it.
        blocks_per_slot: blocks of the longest sequence.
    """

    def __init__(self, blocks: BlockAllocator, blocks_per_slot: int) -> None:
        self.num_slots = blocks.num_blocks // blocks_per_slot
        self.blocks_per_slot = blocks_per_slot
        self._blocks = blocks
        self._free = list(range(self.num_slots))  # a heap: the lowest free slot first

    @property
    def num_free(self) -> int:
        """Slots that nobody holds."""
        return len(self._free)

    def allocate(self) -> list[int]:
        """Take a slot; its blocks, an ascending run. The caller has checked `num_free`."""
        slot = heapq.heappop(self._free)
        return self._blocks.allocate_run(slot * self.blocks_per_slot, self.blocks_per_slot)

    def release(self, table: Sequence[int]) -> None:
        """Give back the slot whose blocks are `table`."""
        self._blocks.release(table)
        heapq.heappush(self._free, table[0] // self.blocks_per_slot)
