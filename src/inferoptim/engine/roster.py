"""Who waits, who runs, and the row of the batch and the memory that each of them has. No torch.

The scheduler decides what a step computes; here a sequence enters, gets a place, loses it and leaves.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict

from inferoptim.engine.blocks import blocks_for
from inferoptim.engine.integrity import check_accounts
from inferoptim.engine.kv_memory import KVMemory, Tracked
from inferoptim.engine.planning import Draft, Limits, SchedulerConfig
from inferoptim.engine.request import FinishReason, Request, Status
from inferoptim.engine.step import Admission
from inferoptim.errors import CapacityError, RequestError


class Roster:
    """Every unfinished sequence in one of two queues, in order of arrival. Owner: the scheduler.

    Args:
        config: levers and sizes.
        memory: gives block tables.
        limits: how many may run; the scheduler changes it.
    """

    def __init__(self, config: SchedulerConfig, memory: KVMemory, limits: Limits) -> None:
        self._config = config
        self._memory = memory
        self._limits = limits
        self.everyone: dict[str, Tracked] = {}  # every unfinished one
        self.waiting: OrderedDict[str, Tracked] = OrderedDict()  # next to admit first
        self.running: dict[str, Tracked] = {}  # in order of arrival
        self.free_rows = list(range(config.max_num_seqs))  # a heap: the batch stays dense at its low end
        self._released: list[int] = []  # rows to name in the next plan
        self._held: list[tuple[int, list[int]]] = []  # static batches: rows and slots of finished members
        self.preemptions = 0
        self.query_tokens = 0
        self.hit_tokens = 0

    def idle_tokens(self) -> int:
        """Tokens' worth of owned blocks in which nothing is computed."""
        size = self._config.block_size
        # Shared blocks are full, so whatever is not yet computed lies in blocks of one owner.
        slack = sum(len(seq.block_table) * size - seq.num_computed for seq in self.running.values())
        return slack + sum(len(table) * size for _, table in self._held)

    def take_released(self) -> tuple[int, ...]:
        """The rows that were left since the last call; the next plan names them."""
        released = tuple(self._released)
        self._released.clear()
        return released

    def enter(self, request: Request, samples_on_device: bool) -> Tracked:
        """Put a request at the end of the queue; see `Scheduler.add`."""
        name, num_prompt, longest = (
            request.request_id,
            len(request.prompt_token_ids),
            self._config.max_model_len,
        )
        if name in self.everyone:
            raise RequestError(f"request {name}: this id is already in use")
        if num_prompt == 0:
            raise RequestError(f"request {name}: the prompt is empty; it needs at least one token")
        if num_prompt >= longest:
            raise RequestError(
                f"request {name}: the prompt has {num_prompt} tokens and max_model_len is {longest}: "
                f"shorten it to {longest - 1} or raise max_model_len"
            )
        sampling = request.sampling
        max_total = min(num_prompt + sampling.max_tokens, longest)
        needed = blocks_for(max_total - 1, self._config.block_size)  # the last token's KV is never computed
        if needed > self._memory.blocks.num_blocks:
            raise CapacityError(
                f"request {name}: {num_prompt} prompt + {max_total - num_prompt} output tokens need {needed} KV blocks, "
                f"there are {self._memory.blocks.num_blocks}: lower max_tokens, shorten the prompt or raise kv_budget_bytes"
            )
        eos = frozenset() if sampling.ignore_eos else request.eos_token_ids
        seq = Tracked(
            request=request,
            token_ids=list(request.prompt_token_ids),
            max_total=max_total,
            stop_ids=eos.union(sampling.stop_token_ids),
            on_device=sampling.on_device if samples_on_device else sampling.plain,
        )
        self.everyone[name] = seq
        self.waiting[name] = seq
        return seq

    def preempt_last(self) -> Tracked:
        """Take everything from the latest arrival; it keeps its tokens and will compute them again."""
        name, victim = self.running.popitem()
        self._vacate(victim)
        victim.status = Status.PREEMPTED
        victim.num_computed = 0
        victim.num_preemptions += 1
        victim.draft_token_ids = []
        self.waiting[name] = victim
        self.waiting.move_to_end(name, last=False)
        self.preemptions += 1
        return victim

    def admit(self, step: Draft, most: int | None = None) -> Tracked | None:
        """Give the head of the queue a row and blocks for all its known tokens; None when it must wait.

        While others run, one block for each of them and for the newcomer stays free (the watermark), so that nobody
        is preempted before a whole block of output.

        Args:
            step: the plan being built.
            most: wait, too, when more than this many tokens remain to be computed.
        """
        if not self.waiting or not self.free_rows or len(self.running) >= self._limits.rows:
            return None
        name, seq = next(iter(self.waiting.items()))
        reserved = self._memory.reserve(
            seq,
            watermark=len(self.running) + 1 if self.running else 0,
            most=most,
            patient=self._config.in_flight_batching,
        )
        if not reserved:
            return None
        del self.waiting[name]
        self.running[name] = seq
        seq.slot = heapq.heappop(self.free_rows)
        seq.status = Status.RUNNING
        if self._config.prefix_caching and seq.num_preemptions == 0:
            self.query_tokens += len(seq.token_ids)
            self.hit_tokens += seq.num_cached
        step.admitted.append(
            Admission(seq.slot, name, tuple(seq.token_ids), seq.num_prompt, seq.request.sampling)
        )
        step.new_blocks.append((seq.slot, tuple(seq.block_table)))
        return seq

    def retire(self, seq: Tracked, reason: FinishReason, now_s: float | None) -> None:
        """End a sequence wherever it stands. In a static batch its place stays taken until the last member ends."""
        name = seq.request.request_id
        del self.everyone[name]
        if self.running.pop(name, None) is None:
            del self.waiting[name]
        elif self._config.in_flight_batching:
            self._vacate(seq)
        else:
            if self._memory.paged:  # neighbours may need the blocks; a slot is of no use to them
                self._memory.free(seq)
            self._held.append((seq.slot, seq.block_table))
            seq.slot, seq.block_table = -1, []
            if not self.running:
                self.end_static_batch()
        seq.status = Status.FINISHED
        seq.finish_reason = reason
        seq.finished_s = now_s
        seq.draft_token_ids = []

    def _vacate(self, seq: Tracked) -> None:
        """Free a sequence's memory and row."""
        self._memory.free(seq)
        self._free_row(seq.slot)
        seq.slot = -1

    def end_static_batch(self) -> None:
        for slot, table in self._held:
            self._memory.free_table(table)
            self._free_row(slot)
        self._held.clear()

    def _free_row(self, slot: int) -> None:
        heapq.heappush(self.free_rows, slot)
        self._released.append(slot)

    def check(self) -> None:
        """Every invariant between sequences, rows and blocks; O(sequences + blocks), for tests and idle moments.

        Raises:
            AssertionError: naming what disagrees.
        """
        running = list(self.running.values())
        rows = [seq.slot for seq in running] + [slot for slot, _ in self._held] + self.free_rows
        assert sorted(rows) == list(range(self._config.max_num_seqs)), f"rows lost or shared: {sorted(rows)}"
        assert not (self.running.keys() & self.waiting.keys()), "a sequence both runs and waits"
        self._memory.check(running, [table for _, table in self._held])
        check_accounts(
            list(self.everyone.values()), running, list(self.waiting.values()), self._config.block_size
        )
        assert self.running or not self._held, "a static batch outlived its members"
