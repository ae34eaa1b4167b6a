"""The prefix cache: find the block that already holds the KV of these tokens after those tokens.

A full block is named by a digest of its tokens, of the digest of the block before it, and so of the whole prefix and
its salt. Digests are 128-bit BLAKE2b: two prefixes with one name would take about 2**64 blocks to meet, so that a hit
needs no comparison of tokens. A block is published once its KV is computed, never before. Blocks that somebody is
about to compute are *announced*, so that a sequence with the same prefix can wait for them instead of repeating them.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence, Set
from hashlib import blake2b

from inferoptim.engine.blocks import BlockAllocator

DIGEST_BYTES = 16


class PrefixCache:
    """Digest -> block, for the blocks of one allocator. Owner: the scheduler.

    Args:
        blocks: the allocator; this cache registers itself to hear of evictions.
    """

    def __init__(self, blocks: BlockAllocator) -> None:
        self._blocks = blocks
        self._block_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}
        self._announced: set[bytes] = set()
        blocks.on_evict = self._evicted

    def __len__(self) -> int:
        """Blocks that can be found, owned or not."""
        return len(self._block_of)

    def extend_chain(self, chain: list[bytes], token_ids: Sequence[int], num_blocks: int, salt: int) -> None:
        """Append digests to `chain` until it names the first `num_blocks` full blocks of `token_ids`.

        Args:
            chain: the digests of the first blocks of the same tokens, possibly none; changed in place.
            token_ids: at least num_blocks * block_size tokens.
            num_blocks: blocks to name.
            salt: sequences meet only under the same salt.
        """
        first = len(chain)
        if first >= num_blocks:
            return
        size = self._blocks.block_size
        tokens = array("q", token_ids[first * size : num_blocks * size])
        data, stride = tokens.tobytes(), size * tokens.itemsize
        parent = chain[-1] if chain else b"salt %d" % salt
        for at in range(0, len(data), stride):
            parent = blake2b(parent + data[at : at + stride], digest_size=DIGEST_BYTES).digest()
            chain.append(parent)

    def lookup(self, chain: Sequence[bytes], most: int) -> list[int]:
        """The blocks of the longest published prefix of `chain`, `most` at the most. Takes no ownership."""
        found = []
        get = self._block_of.get
        for index in range(min(most, len(chain))):
            block = get(chain[index])
            if block is None:
                break
            found.append(block)
        return found

    def announce(self, chain: Sequence[bytes], first: int) -> None:
        """A running sequence is about to compute the blocks of its `chain` from `first` on."""
        self._announced.update(chain[first:])

    def withdraw(self, chain: Sequence[bytes], first: int) -> None:
        """The sequence leaves; the blocks of its `chain` from `first` on will not be computed by it."""
        self._announced.difference_update(chain[first:])

    def count_announced(self, chain: Sequence[bytes], first: int, last: int) -> int:
        """How many blocks of `chain` in a row, from `first` on and before `last`, will soon be published."""
        index = first
        while index < last and chain[index] in self._announced:
            index += 1
        return index - first

    def publish(self, chain: Sequence[bytes], table: Sequence[int], first: int, last: int) -> None:
        """Make blocks [first, last) of a sequence findable; their KV is computed.

        A block whose content is already findable elsewhere stays private: tables never change once handed out.
        """
        for index in range(first, last):
            digest, block = chain[index], table[index]
            self._announced.discard(digest)
            if digest not in self._block_of and block not in self._digest_of:
                self._block_of[digest] = block
                self._digest_of[block] = digest
                self._blocks.keep(block)

    def reset(self) -> None:
        """Forget everything; no sequence runs."""
        self._block_of.clear()
        self._digest_of.clear()
        self._blocks.forget_all()

    def check(self, to_compute: Set[bytes]) -> None:
        """Integrity: both directions agree with each other and with the allocator.

        Args:
            to_compute: names of the blocks that running sequences have yet to compute.

        Raises:
            AssertionError: naming the block that disagrees.
        """
        assert self._announced <= to_compute, "somebody may wait for a block that nobody computes"
        assert len(self._block_of) == len(self._digest_of)
        for digest, block in self._block_of.items():
            assert self._digest_of.get(block) == digest, f"block {block} is published under two digests"
        for block in range(self._blocks.num_blocks):
            assert self._blocks.is_kept(block) == (block in self._digest_of), (
                f"block {block}: kept or findable, not both"
            )

    def _evicted(self, block: int) -> None:
        del self._block_of[self._digest_of.pop(block)]
