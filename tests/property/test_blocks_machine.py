"""Allocator and prefix cache against a model that keeps plain lists."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from inferoptim.engine.blocks import BlockAllocator, blocks_for
from inferoptim.engine.prefix_cache import PrefixCache

SIZE = 2


class BlocksMachine(RuleBasedStateMachine):
    """Sequences of few distinct tokens take tables, publish, leave; the model says who must be evicted."""

    @initialize(num_blocks=st.integers(2, 10))
    def start(self, num_blocks: int) -> None:
        self.blocks = BlockAllocator(num_blocks, SIZE)
        self.cache = PrefixCache(self.blocks)
        self.tables: list[tuple[list[int], list[bytes]]] = []
        self.lru: list[int] = []  # model: unowned blocks with content, next to evict first
        self.content: dict[int, tuple[int, ...]] = {}  # model: findable block -> the prefix it ends

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=8))
    def enter(self, tokens: list[int]) -> None:
        chain: list[bytes] = []
        self.cache.extend_chain(chain, tokens, len(tokens) // SIZE, 0)
        hits = self.cache.lookup(chain, len(chain))
        expected = 0
        while expected < len(chain) and tuple(tokens[: (expected + 1) * SIZE]) in self.content.values():
            expected += 1
        assert [self.content[b] for b in hits] == [
            tuple(tokens[: (i + 1) * SIZE]) for i in range(expected)
        ], "found another prefix than was asked"
        need = blocks_for(len(tokens), SIZE) - len(hits)
        if need > self.blocks.num_free - self.blocks.count_cached(hits):
            return
        self.blocks.share(hits)
        self.lru = [block for block in self.lru if block not in hits]
        worthless = self.blocks.num_free - len(self.lru)
        victims = self.lru[: max(0, need - worthless)]
        fresh = self.blocks.allocate(need)
        assert set(victims) <= set(fresh), "not the least recently used blocks were evicted"
        assert not set(fresh) & set(self.lru[len(victims) :]), "content was thrown away before its turn"
        self.lru = self.lru[len(victims) :]
        for block in victims:
            del self.content[block]
        table = hits + fresh
        self.cache.publish(chain, table, len(hits), len(chain))
        for index in range(len(hits), len(chain)):
            prefix = tuple(tokens[: (index + 1) * SIZE])
            if prefix not in self.content.values():
                self.content[table[index]] = prefix
        self.tables.append((table, chain))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        table, _ = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        self.blocks.release(table)
        owned = {block for other, _ in self.tables for block in other}
        self.lru += [block for block in reversed(table) if block not in owned and block in self.content]

    @precondition(lambda self: not self.tables)
    @rule()
    def reset(self) -> None:
        self.cache.reset()
        self.lru.clear()
        self.content.clear()

    @invariant()
    def whole(self) -> None:
        if not hasattr(self, "blocks"):
            return
        self.blocks.check([table for table, _ in self.tables])
        self.cache.check(set())
        assert len(self.cache) == len(self.content)
        assert self.blocks.num_cached == len(self.lru)
        assert self.blocks.num_free + self.blocks.num_used == self.blocks.num_blocks


BlocksMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestBlocks = BlocksMachine.TestCase
