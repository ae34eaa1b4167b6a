"""The scheduler: which sequences compute how many tokens in the next step, and where their KV goes. No torch.

There is no prefill mode and no decode mode. A sequence has tokens known and tokens computed; a step closes part of
the gap under a token budget. Sequences run in order of arrival: every running one arrived before every waiting one,
so the last to start is the first to be preempted, and a preempted one waits at the front of the queue.

Memory: a sequence is admitted when there are blocks for all its known tokens, and takes them at once; after that it
grows block by block. So only decoding can run out of blocks, never a prompt half way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Tokens

from inferoptim.engine import bursts
from inferoptim.engine.blocks import BlockAllocator, blocks_for
from inferoptim.engine.kv_memory import KVMemory, Tracked
from inferoptim.engine.planning import Draft, Limits, SchedulerConfig
from inferoptim.engine.request import FinishReason, Request, Sequence, Status
from inferoptim.engine.roster import Roster
from inferoptim.engine.step import ScheduledSequence, StepPlan, StepResult
from inferoptim.errors import ConfigError, RequestError


class Scheduler:
    """Owns every `Sequence`, every block and every row of the batch; nobody else writes to them.

    The caller's loop is `plan = schedule(now)`, execute it, `update(plan, result, now)`. One plan is out at a time, or a
    plan and those that `schedule_ahead` made after it. `add`, `abort` and `finish` may be called at any moment, also
    while a plan is out.

    Args:
        config: levers and sizes.
        blocks: the KV-cache's blocks, all free; from now on they belong to this scheduler.
        samples_on_device: the device alone draws tokens, too, not only the likeliest.

    Raises:
        ConfigError: block sizes disagree.
        CapacityError: without paging, not even one sequence of max_model_len fits.
    """

    def __init__(
        self, config: SchedulerConfig, blocks: BlockAllocator, *, samples_on_device: bool = False
    ) -> None:
        if config.block_size != blocks.block_size:
            raise ConfigError(
                f"block_size is {config.block_size}, but the KV-cache has blocks of {blocks.block_size}"
            )
        self.config = config
        self._samples_on_device = samples_on_device
        self.blocks = blocks
        self._memory = KVMemory(
            blocks,
            paged=config.paged_kv,
            prefix_caching=config.prefix_caching,
            max_model_len=config.max_model_len,
        )
        self._out: deque[tuple[StepPlan, list[Tracked]]] = (
            deque()
        )  # plans that are out, oldest first, and whose they are
        self._limits = Limits(config.max_num_seqs, config.max_num_batched_tokens)
        self._roster = Roster(config, self._memory, self._limits)
        self._num_steps = 0
        self._scheduled_tokens = 0
        self._draft_proposed = 0
        self._draft_accepted = 0

    # ---- what callers ask -------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether any sequence waits or runs."""
        return bool(self._roster.everyone)

    @property
    def num_running(self) -> int:
        """Sequences that hold a row and are not finished."""
        return len(self._roster.running)

    @property
    def num_waiting(self) -> int:
        """Sequences without a row, preempted ones included."""
        return len(self._roster.waiting)

    @property
    def kv_reserved_tokens(self) -> int:
        """Tokens of KV that owned blocks could hold."""
        return self.blocks.num_used * self.config.block_size

    @property
    def kv_used_tokens(self) -> int:
        """Tokens of KV computed in owned blocks; a shared block counts once."""
        return self.kv_reserved_tokens - self._roster.idle_tokens()

    def counters(self) -> dict[str, int]:
        """Monotonic totals since construction; a difference of two calls describes the time between them.

        Prefix-cache tokens count first admissions only: a preempted sequence that finds its own blocks again is no hit.
        """
        return {
            "prefix_cache_query_tokens": self._roster.query_tokens,
            "prefix_cache_hit_tokens": self._roster.hit_tokens,
            "preemptions": self._roster.preemptions,
            "scheduled_tokens": self._scheduled_tokens,
            "steps": self._num_steps,
            "draft_proposed_tokens": self._draft_proposed,
            "draft_accepted_tokens": self._draft_accepted,
        }

    # ---- arrivals and departures ------------------------------------------------------------------------------

    def add(self, request: Request) -> Sequence:
        """Queue a request.

        Raises:
            RequestError: empty prompt, no room for one output token in the context, or an id already in use.
            CapacityError: its longest possible form exceeds the whole cache, so that it could never be sure to end.
        """
        return self._roster.enter(request, self._samples_on_device)

    def abort(self, request_id: str, now_s: float | None = None) -> Sequence | None:
        """The caller left: free everything at once; None when there is no such unfinished request."""
        seq = self._roster.everyone.get(request_id)
        if seq is not None:
            self._roster.retire(seq, FinishReason.ABORT, now_s)
        return seq

    def finish(self, seq: Sequence, reason: FinishReason, now_s: float | None = None) -> None:
        """End a sequence for a reason found outside (a stop string); nothing happens if it has ended already."""
        tracked = self._roster.everyone.get(seq.request.request_id)
        if tracked is seq:
            self._roster.retire(tracked, reason, now_s)

    def set_drafts(self, request_id: str, tokens: Tokens[int]) -> None:
        """Propose the tokens that follow the last known one. Ignored unless the sequence's next step samples alone.

        More than fit the token budget, the blocks or the sequence's remaining length are cut from the end.
        """
        seq = self._roster.running.get(request_id)
        if seq is not None and len(seq.token_ids) - seq.num_computed == 1:
            seq.draft_token_ids = list(tokens)

    def reset_prefix_cache(self) -> None:
        """Forget every cached block, as between measured runs.

        Raises:
            RequestError: sequences are running or waiting.
        """
        if self._roster.everyone:
            raise RequestError(
                f"the prefix cache can be reset only while idle: {self.num_running} sequences run, {self.num_waiting} wait"
            )
        self._memory.reset_prefix_cache()

    # ---- the step ---------------------------------------------------------------------------------------------

    def schedule(self, now_s: float, most_steps: int = 1, *, within_end: bool = False) -> StepPlan | None:
        """Decide the next step; None when there is nothing to do.

        Args:
            now_s: `time.perf_counter()`, for `first_scheduled_s`.
            most_steps: the plan may span this many steps when all its sequences decode on the device alone (see bursts.py).
            within_end: no longer than until the first of them must end.
        """
        assert not self._out, "schedule() before update() of the plan that is out"
        if not self._roster.everyone:
            return None
        step = Draft(self._limits.tokens)
        if self.config.chunked_prefill:
            self._schedule_chunked(step)
        else:
            self._schedule_whole(step)
        assert step.sequences, "work remains, but nothing could be scheduled"
        num_steps = 1
        if most_steps > 1 and all(s.num_tokens == 1 for s in step.sequences):
            num_steps = self._extend(step, most_steps, within_end)
        return self._send_out(step, num_steps, now_s)

    def schedule_ahead(self, now_s: float, most_steps: int) -> StepPlan | None:
        """The plan after the one that is out, before its outcome is known; None when it must be known first.

        After decodes on the device alone, more of them, unless somebody could be admitted or blocks are short. After
        prompts, more of those, unless somebody has a token then that the host must hand on.
        """
        if len(self._out) != 1:
            return None
        plan, deciding = self._out[0]
        if any(work.num_tokens > 1 for work in plan.sequences):
            return self._prompts_ahead(plan, deciding, now_s)
        if (self._roster.waiting and self._roster.free_rows) or not bursts.can_burst(deciding):
            return None  # somebody may join, or the host chooses
        members = [
            seq for seq in self._roster.running.values() if len(seq.token_ids) + seq.pending < seq.max_total
        ]
        if not members or not all(seq.pending for seq in members):
            return None  # somebody is left who was not in that plan
        step = Draft(self._limits.tokens, members=members)
        num_steps, grown = bursts.extend(
            members, most_steps, self._memory, within_end=bool(self._roster.waiting)
        )
        if num_steps == 0:
            return None
        step.new_blocks += grown
        step.sequences = [
            ScheduledSequence(seq.slot, seq.num_computed + seq.pending, 1, 0, True) for seq in members
        ]
        return self._send_out(step, num_steps, now_s)

    def _prompts_ahead(self, plan: StepPlan, deciding: Tokens[Tracked], now_s: float) -> StepPlan | None:
        """Parts of prompts that follow a plan with prompts; None when anybody decodes meanwhile."""
        if not self.config.chunked_prefill:
            return None
        behind = bursts.prompts_behind(plan, deciding, self._roster.running.values())
        if behind is None:
            return None
        step = Draft(self._limits.tokens)
        self._compute_prompts(step, behind)
        return self._send_out(step, 1, now_s) if step.sequences else None

    def _extend(self, step: Draft, most_steps: int, within_end: bool) -> int:
        if not bursts.can_burst(step.members):
            return 1
        num_steps, grown = bursts.extend(
            step.members, most_steps, self._memory, within_end=within_end or bool(self._roster.waiting)
        )
        step.new_blocks += grown
        return num_steps

    def _send_out(self, step: Draft, num_steps: int, now_s: float) -> StepPlan:
        plan = StepPlan(
            step_id=self._num_steps,
            sequences=tuple(step.sequences),
            released=self._roster.take_released(),
            admitted=tuple(step.admitted),
            new_blocks=tuple(step.new_blocks),
            draft_tokens=tuple(step.draft_tokens),
            num_steps=num_steps,
        )
        self._num_steps += 1
        self._scheduled_tokens += plan.num_tokens
        for seq in step.members:
            if seq.first_scheduled_s is None:
                seq.first_scheduled_s = now_s
        _count_out(plan, step.members, 1)
        self._out.append((plan, step.members))
        return plan

    def _schedule_chunked(self, step: Draft) -> None:
        """Decodes first, then parts of prompts with what is left of the budget, then newcomers."""
        self._compute_prompts(step, self._schedule_decodes(step))

    def _schedule_whole(self, step: Draft) -> None:
        """Prompts whole and alone, decodes when there is none. The first prompt may exceed the budget."""
        if self.config.in_flight_batching:
            while step.budget > 0:
                newcomer = self._roster.admit(step, most=step.budget if step.sequences else None)
                if newcomer is None:
                    break
                step.compute(newcomer, len(newcomer.token_ids) - newcomer.num_computed, 0, samples=True)
        else:
            if (
                not self._roster.running
            ):  # a new static batch: its members are chosen now, whatever the budget
                while self._roster.admit(step) is not None:
                    pass
            for seq in self._roster.running.values():
                gap = len(seq.token_ids) - seq.num_computed
                if gap > 1 and (gap <= step.budget or not step.sequences):
                    step.compute(seq, gap, 0, samples=True)
        if not step.sequences:
            self._schedule_decodes(step)

    def _compute_prompts(self, step: Draft, behind: Tokens[Tracked]) -> None:
        for seq in behind:
            if step.budget == 0:
                return
            self._compute_part(step, seq)
        while step.budget > 0 and (newcomer := self._roster.admit(step)) is not None:
            self._compute_part(step, newcomer)

    def _compute_part(self, step: Draft, seq: Tracked) -> None:
        gap = len(seq.token_ids) - seq.num_computed - seq.flying
        num_tokens = min(gap, step.budget)
        step.compute(seq, num_tokens, 0, samples=num_tokens == gap)

    def _schedule_decodes(self, step: Draft) -> list[Tracked]:
        """Give every running sequence that lacks one token that token, and its drafts what is then left.

        Returns:
            The sequences that lack more than one, oldest first. None of them is preempted here: a victim arrived
            after the sequence that needs its blocks.
        """
        behind = []
        size = self.config.block_size
        spare = step.budget - len(
            self._roster.running
        )  # one token is kept for each sequence before any draft
        for seq in list(self._roster.running.values()):
            if step.budget == 0 or seq.status is not Status.RUNNING:
                break  # out of budget, or preempted for an older one, and with it all that came after
            known = len(seq.token_ids)
            if known - seq.num_computed > 1:
                behind.append(seq)
                continue
            num_draft = self._drafts_that_fit(seq, spare) if seq.draft_token_ids and spare > 0 else 0
            missing = blocks_for(known + num_draft, size) - len(seq.block_table)
            if missing > 0 and not self._grow(step, seq, missing):
                break
            if num_draft:
                spare -= num_draft
                step.draft_tokens.append((seq.slot, tuple(seq.draft_token_ids[:num_draft])))
            step.compute(seq, 1 + num_draft, num_draft, samples=True)
        return behind

    def _drafts_that_fit(self, seq: Tracked, spare: int) -> int:
        """How many proposals to verify. They never cause a preemption and never exceed what may still be output."""
        known, size = len(seq.token_ids), self.config.block_size
        count = min(len(seq.draft_token_ids), spare, seq.max_total - known - 1)
        room = (
            max(len(seq.block_table), blocks_for(known, size)) * size - known
        )  # with no block just for drafts
        if count > room and self.blocks.num_free <= len(self._roster.running) + blocks_for(count, size):
            return room
        return count

    def _grow(self, step: Draft, seq: Tracked, missing: int) -> bool:
        """Append `missing` blocks to a running sequence; False when it was itself preempted for lack of them."""
        while missing > self.blocks.num_free:
            if self._roster.preempt_last() is seq:
                return False
        step.new_blocks.append((seq.slot, tuple(self._memory.grow(seq, missing))))
        return True

    # ---- what came out ----------------------------------------------------------------------------------------

    def cancel(self) -> StepPlan:
        """The newest plan that is out could not be computed. Rows and blocks stay as it says; nobody gained anything."""
        plan, members = self._out.pop()
        self._scheduled_tokens -= plan.num_tokens
        _count_out(plan, members, -1)
        for seq in members:
            seq.draft_token_ids = []
        return plan

    def retreat(self, failed: StepPlan) -> bool:
        """After a step for which the device had no memory: preempt everybody, and then run half as much at once.

        Args:
            failed: that step's plan, cancelled; no plan is out.

        Returns:
            False when less cannot be tried: the step was one sequence, and as short as it gets.
        """
        assert not self._out, "retreat() while a plan is out"
        while self._roster.running:
            self._roster.preempt_last()
        self._roster.end_static_batch()
        return self._limits.shrink(len(failed.sequences), failed.num_tokens)

    def update(self, plan: StepPlan, result: StepResult, now_s: float) -> list[Sequence]:
        """Take in the outcome of the oldest plan that is out.

        Args:
            plan: that plan.
            result: its outcome; what it says of sequences aborted meanwhile is ignored.
            now_s: `time.perf_counter()`, for `first_token_s` and `finished_s`.

        Returns:
            The sequences that gained tokens, some of them finished by it.
        """
        assert self._out, "no plan is out"
        oldest, members = self._out.popleft()
        assert plan is oldest, "this plan is not the oldest that is out"
        assert result.step_id == plan.step_id, "a result of another step"
        self._limits.step_passed()
        _count_out(plan, members, -1)
        changed: list[Sequence] = []
        for work, seq, out in zip(plan.sequences, members, result.sequences, strict=True):
            if seq.status is not Status.RUNNING:
                continue  # aborted while the plan was out; its row and blocks are free since then
            assert out.slot == work.slot, "results are in the order of the plan"
            before = seq.num_computed
            if not work.samples:
                seq.num_computed = before + work.num_tokens
                self._memory.publish(seq, before)
                continue
            tokens = out.token_ids
            assert 1 <= len(tokens) <= work.num_draft + plan.num_steps, (
                f"{len(tokens)} tokens from {work.num_draft} drafts in {plan.num_steps} steps"
            )
            if work.num_draft:
                self._draft_proposed += work.num_draft
                self._draft_accepted += len(tokens) - 1
            seq.draft_token_ids = []
            reason = seq.append(tokens)
            # The known tokens and the accepted drafts are in the cache; the last token sampled is not.
            seq.num_computed = min(
                before + work.num_tokens - work.num_draft + len(tokens) - 1, len(seq.token_ids)
            )
            self._memory.publish(seq, before)
            if seq.first_token_s is None:
                seq.first_token_s = now_s
            if reason is not None:
                self._roster.retire(seq, reason, now_s)
            changed.append(seq)
        return changed

    def check(self) -> None:
        """Every invariant between sequences, rows and blocks; O(sequences + blocks), for tests and idle moments.

        Raises:
            AssertionError: naming what disagrees.
        """
        self._roster.check()


def _count_out(plan: StepPlan, members: Tokens[Tracked], sign: int) -> None:
    """Note in its sequences what a plan that goes out will compute and give them (1), or that it no longer will (-1)."""
    for work, seq in zip(plan.sequences, members, strict=True):
        if work.num_tokens == 1 and work.samples:
            seq.pending += sign * plan.num_steps
        else:
            seq.flying += sign * (work.num_tokens - work.num_draft)
