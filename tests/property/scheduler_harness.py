"""A scheduler, a runner that knows exactly what every KV slot should hold, and the checks around each step.

The runner here is a model of the real one: rows are persistent, plans carry deltas, and a KV slot holds the hash of
the whole prefix that produced it. Before a token is computed every earlier slot of its sequence is compared with the
hash of the sequence's own tokens, so a stale, foreign or unwritten block is caught at the step that reads it. The
next token is a function of the prefix hash: outputs must equal those of the request alone, whatever happened.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from inferoptim.config import SamplingParams
from inferoptim.engine.blocks import BlockAllocator
from inferoptim.engine.planning import SchedulerConfig
from inferoptim.engine.request import FinishReason, Request, Sequence, Status
from inferoptim.engine.scheduler import Scheduler
from inferoptim.engine.step import ScheduledSequence, SequenceResult, StepPlan, StepResult
from inferoptim.errors import CapacityError, RequestError

VOCABULARY = 5  # small, so that wrong tokens and prefixes often coincide with right ones
EOS = 3


def after(prefix: int, token: int) -> int:
    """Hash of a prefix with one more token."""
    return hash((prefix, token, 0x9E3779B9))


def next_token(prefix: int) -> int:
    """What the model says after a prefix."""
    return (prefix >> 7) % VOCABULARY


def hashes(tokens: list[int]) -> list[int]:
    """Hash of every prefix of `tokens`, the empty one excluded."""
    out, prefix = [], 0
    for token in tokens:
        prefix = after(prefix, token)
        out.append(prefix)
    return out


def alone(request: Request, max_model_len: int) -> tuple[list[int], FinishReason]:
    """Output and end of a request that has the machine to itself."""
    sampling, prefix, output = request.sampling, 0, []
    for token in request.prompt_token_ids:
        prefix = after(prefix, token)
    while True:
        token = next_token(prefix)
        output.append(token)
        prefix = after(prefix, token)
        ends = token in sampling.stop_token_ids or (
            not sampling.ignore_eos and token in request.eos_token_ids
        )
        if ends and len(output) >= sampling.min_tokens:
            return output, FinishReason.STOP
        if len(output) == sampling.max_tokens or len(request.prompt_token_ids) + len(output) == max_model_len:
            return output, FinishReason.LENGTH


@dataclass
class Row:
    """A row of the persistent batch, as the runner sees it."""

    request_id: str
    tokens: list[int]
    plain: bool
    table: list[int] = field(default_factory=list)


class ModelRunner:
    """Executes plans on remembered content instead of numbers."""

    def __init__(self, config: SchedulerConfig, num_blocks: int) -> None:
        self.config = config
        self.num_blocks = num_blocks
        self.rows: dict[int, Row] = {}
        self.kv: dict[tuple[int, int], int] = {}  # (block, offset) -> hash of the prefix it was computed from
        self.steps = 0
        self.chained: set[int] = set()  # rows whose latest token the device itself chose and holds
        self.gained: set[int] = set()  # rows that gained a token in the latest step

    def execute(self, plan: StepPlan, ahead: bool = False) -> StepResult:
        """Run a plan. `ahead`: it was made before the outcome of the one before it was known."""
        assert plan.step_id == self.steps
        self.steps += 1
        self._apply(plan)
        chosen = [s.slot for s in plan.sequences]
        if ahead:
            assert not (self.gained - self.chained) & set(chosen), (
                "ahead of a token that the host has to hand on"
            )
        decodes = all(s.num_tokens == 1 and s.samples and self.rows[s.slot].plain for s in plan.sequences)
        assert decodes or plan.num_steps == 1, "many steps of what the device cannot do alone"
        self.chained = set(chosen) if decodes else set()
        self.gained = {s.slot for s in plan.sequences if s.samples}
        drafts = dict(plan.draft_tokens)
        assert len(drafts) == len(plan.draft_tokens)
        assert set(drafts) <= {s.slot for s in plan.sequences}
        assert len({s.slot for s in plan.sequences}) == len(plan.sequences), "a row twice in one step"
        results: list[SequenceResult] = []
        for index in range(
            plan.num_steps
        ):  # of many steps each follows from the one before, on the device alone
            writes: dict[tuple[int, int], int] = {}
            for at, work in enumerate(plan.sequences):
                work = work._replace(start=work.start + index)
                own, result = self._compute(
                    work, list(drafts.get(work.slot, ())), past_end=index > 0 or ahead
                )
                assert not writes.keys() & own.keys(), "two sequences write the same KV slot in one step"
                writes.update(own)
                if index == 0:
                    results.append(result)
                else:
                    results[at] = SequenceResult(work.slot, results[at].token_ids + result.token_ids)
            self.kv.update(writes)  # only now: nobody may read in a step what another one writes in it
        return StepResult(plan.step_id, tuple(results))

    def _apply(self, plan: StepPlan) -> None:
        assert len(set(plan.released)) == len(plan.released), "a row released twice"
        for slot in plan.released:
            del self.rows[slot]
        for admission in plan.admitted:
            assert admission.slot not in self.rows, "admitted to a row that is taken"
            assert 0 <= admission.slot < self.config.max_num_seqs
            self.rows[admission.slot] = Row(
                admission.request_id, list(admission.token_ids), admission.sampling.plain
            )
        for slot, blocks in plan.new_blocks:
            assert blocks, "an empty delta"
            self.rows[slot].table += blocks
        for row in self.rows.values():
            assert all(0 <= block < self.num_blocks for block in row.table)
            if not self.config.paged_kv:
                assert row.table == list(range(row.table[0], row.table[0] + len(row.table))), (
                    "not a contiguous run"
                )

    def _compute(
        self, work: ScheduledSequence, drafts: list[int], past_end: bool
    ) -> tuple[dict[tuple[int, int], int], SequenceResult]:
        row, size = self.rows[work.slot], self.config.block_size
        assert work.num_draft == len(drafts)
        assert work.num_tokens >= 1
        known = len(row.tokens)
        end = work.start + work.num_tokens
        assert work.samples == (end - work.num_draft == known), (
            "samples exactly when the last known token is reached"
        )
        assert work.samples or not drafts
        assert end <= known + len(drafts)
        content = hashes(row.tokens + drafts)
        if past_end and end > len(row.table) * size:  # the device computes nothing beyond a row's last block
            row.tokens.append(0)
            return {}, SequenceResult(work.slot, (0,))
        assert end <= len(row.table) * size, "tokens without a block"
        for position in range(work.start):
            where = (row.table[position // size], position % size)
            assert self.kv.get(where) == content[position], f"{row.request_id} reads wrong KV at {position}"
        own = {(row.table[p // size], p % size): content[p] for p in range(work.start, end)}
        if not work.samples:
            return own, SequenceResult(work.slot, ())
        accepted = [next_token(content[known - 1])]
        for index, draft in enumerate(drafts):
            if draft != accepted[-1]:
                break
            accepted.append(next_token(content[known + index]))
        row.tokens += accepted
        return own, SequenceResult(work.slot, tuple(accepted))


def check_plan(plan: StepPlan, config: SchedulerConfig, known_before: dict[int, int]) -> None:
    """What the levers promise of every plan. `known_before`: computed tokens of the rows that decode."""
    whole = not config.chunked_prefill
    if plan.num_steps > 1:
        assert all(s.num_tokens == 1 and s.samples for s in plan.sequences), "many steps of what is no decode"
    if plan.num_tokens > config.max_num_batched_tokens * plan.num_steps:
        assert whole, "over the token budget"
        assert len(plan.sequences) == 1, "over the token budget, and not alone"
    if whole:
        assert all(s.samples for s in plan.sequences), "a prompt in pieces although chunked_prefill is off"
        prompts = [s for s in plan.sequences if s.num_tokens - s.num_draft > 1]
        assert not prompts or all(s.slot not in known_before for s in plan.sequences), (
            "a decode beside a prefill"
        )
    if config.max_num_batched_tokens >= len(known_before) and not whole:
        scheduled = {s.slot for s in plan.sequences}
        kept = known_before.keys() - set(plan.released)
        assert kept <= scheduled, "a decode waited although the budget had room for it"


class Harness:
    """Drives one scheduler and knows what must come out."""

    def __init__(self, config: SchedulerConfig, num_blocks: int, seed: int) -> None:
        self.config = config
        self.random = random.Random(seed)
        self.scheduler = Scheduler(config, BlockAllocator(num_blocks, config.block_size))
        self.runner = ModelRunner(config, num_blocks)
        self.live: dict[str, Sequence] = {}
        self.ended: dict[str, Sequence] = {}
        self.count = 0
        self.ahead = 0  # plans of decodes made before the outcome of the one before was known
        self.prompts_ahead = 0  # plans of prompts
        self.now = 0.0

    def arrive(self, prompt: tuple[int, ...], sampling: SamplingParams, salt: int = 0) -> None:
        """Add a request; refused exactly when it must be."""
        request = Request(f"r{self.count}", prompt, sampling, self.now, frozenset({EOS}), salt)
        self.count += 1
        total = min(len(prompt) + sampling.max_tokens, self.config.max_model_len)
        fits = (total - 1) <= self.scheduler.blocks.num_blocks * self.config.block_size
        try:
            seq = self.scheduler.add(request)
        except RequestError:
            assert not prompt or len(prompt) >= self.config.max_model_len
        except CapacityError:
            assert not fits
        else:
            assert fits
            self.live[request.request_id] = seq
        self.scheduler.check()

    def stop(self, name: str) -> None:
        """A stop string was found outside."""
        seq = self.live.pop(name)
        self.scheduler.finish(seq, FinishReason.STOP)
        assert seq.finish_reason is FinishReason.STOP
        assert self.scheduler.abort(name) is None
        self.matches_alone(seq)
        self.scheduler.check()

    def step(self, abort: str | None = None, most_steps: int = 1, ahead: bool = False) -> None:
        """One plan with every check around it, and with `ahead` those that can follow it before its outcome is known.

        Args:
            abort: leaves while the plan is out.
            most_steps: what one plan may span.
        """
        self.now += 1.0
        static_before = not self.config.in_flight_batching and self.scheduler.num_running > 0
        decoding = {
            seq.slot: seq.num_computed
            for seq in self.live.values()
            if seq.status is Status.RUNNING
            and seq.num_known - seq.num_computed == 1
            and seq.num_generated > 0
        }
        preemptions = self.scheduler.counters()["preemptions"]
        plan = self.scheduler.schedule(self.now, most_steps)
        preemptions = self.scheduler.counters()["preemptions"] - preemptions
        self.scheduler.check()
        if plan is None:
            assert not self.live, "nothing scheduled although work remains"
            assert not self.scheduler.has_work
            return
        if static_before:
            assert not plan.admitted, "joined a static batch that had not ended"
            assert len(plan.released) == preemptions, "a place in a static batch was given up before its end"
        check_plan(plan, self.config, decoding)
        self._check_memory()
        assert plan.num_steps <= most_steps
        if abort is not None:
            self.abort(abort)
        out = [(plan, *self._execute(plan))]
        while out:
            following = self.scheduler.schedule_ahead(self.now, most_steps) if ahead else None
            self.scheduler.check()
            if following is not None:
                assert not following.draft_tokens
                assert 1 <= following.num_steps <= most_steps
                if all(s.num_tokens == 1 and s.samples for s in plan.sequences):
                    assert not following.admitted
                    assert all(s.num_tokens == 1 and s.samples for s in following.sequences)
                    self.ahead += 1
                else:
                    assert following.num_steps == 1
                    assert following.num_tokens <= self.config.max_num_batched_tokens
                    for seq in (self.live[name] for name in out[-1][2] & self.live.keys()):
                        longest = min(
                            seq.num_prompt + seq.request.sampling.max_tokens, self.config.max_model_len
                        )
                        assert seq.num_known + 1 >= longest, "its next token waits for others' prompts"
                    self.prompts_ahead += 1
                plan = following
                out.append((following, *self._execute(following, ahead=True)))
                if self.live and self.random.random() < 0.1:
                    self.abort(self.random.choice(sorted(self.live)))
            self._take(*out.pop(0))

    def _execute(self, plan: StepPlan, ahead: bool = False) -> tuple[StepResult, set[str]]:
        """The outcome, and the requests that sampled: a plan made ahead may release their rows before it is taken in."""
        result = self.runner.execute(plan, ahead)
        return result, {self.runner.rows[r.slot].request_id for r in result.sequences if r.token_ids}

    def _take(self, plan: StepPlan, result: StepResult, sampled: set[str]) -> None:
        before = {name: seq.num_generated for name, seq in self.live.items()}
        changed = self.scheduler.update(plan, result, self.now)
        self.scheduler.check()
        assert {seq.request.request_id for seq in changed} == sampled & self.live.keys()
        for seq in changed:
            name = seq.request.request_id
            assert not seq.draft_token_ids, "proposals outlived the tokens that they followed"
            assert seq.num_generated > before[name]
            assert seq.first_token_s is not None
            assert seq.first_scheduled_s is not None
            assert seq.first_scheduled_s <= seq.first_token_s
            if seq.finish_reason is not None:
                assert (seq.status, seq.slot, seq.block_table) == (Status.FINISHED, -1, [])
                assert seq.finished_s == self.now
                self.ended[name] = self.live.pop(name)
                expected, reason = alone(seq.request, self.config.max_model_len)
                assert seq.token_ids[seq.num_prompt :] == expected, f"{name} differs from running alone"
                assert seq.finish_reason is reason
            else:
                self.matches_alone(seq)
        self._check_memory()

    def abort(self, name: str) -> None:
        seq = self.live.pop(name)
        assert self.scheduler.abort(name) is seq
        assert seq.finish_reason is FinishReason.ABORT
        assert self.scheduler.abort(name) is None
        self.matches_alone(seq)
        self.scheduler.check()

    def propose(self) -> None:
        """Drafts that are right up to a random point, for some of the sequences; too many for some."""
        for name, seq in self.live.items():
            if self.random.random() < 0.3:
                continue
            prefix = hashes(seq.token_ids)[-1]
            drafts = []
            for _ in range(self.random.randint(1, 7)):
                right = next_token(prefix)
                drafts.append(right if self.random.random() < 0.8 else self.random.randrange(VOCABULARY))
                prefix = after(prefix, drafts[-1])
            self.scheduler.set_drafts(name, drafts)
        self.scheduler.set_drafts("nobody", [1, 2])

    def matches_alone(self, seq: Sequence) -> None:
        output = seq.token_ids[seq.num_prompt :]
        expected, _ = alone(seq.request, self.config.max_model_len)
        assert output == expected[: len(output)], f"{seq.request.request_id} differs from running alone"

    def _check_memory(self) -> None:
        """What the properties say of memory, counted the slow way."""
        size = self.config.block_size
        running = [seq for seq in self.live.values() if seq.status is Status.RUNNING]
        filled = {(seq.block_table[p // size], p % size) for seq in running for p in range(seq.num_computed)}
        assert self.scheduler.kv_used_tokens == len(filled)
        assert (
            self.scheduler.kv_reserved_tokens >= len({b for seq in running for b in seq.block_table}) * size
        )
        assert self.scheduler.num_running == len(running)
        assert self.scheduler.num_waiting == len(self.live) - len(running)
        if not self.config.paged_kv:
            assert self.scheduler.counters()["preemptions"] == 0

    def drain(self) -> None:
        """No more arrivals: everything ends, and nothing is owned any more."""
        for _ in range(5000):
            if not self.live:
                break
            self.step()
        assert not self.live, f"never ended: {sorted(self.live)}"
        assert self.scheduler.schedule(self.now) is None
        assert not self.scheduler.has_work
        assert self.scheduler.blocks.num_used == 0, "blocks leaked"
        assert self.scheduler.kv_used_tokens == self.scheduler.kv_reserved_tokens == 0
        self.scheduler.check()
        counters = self.scheduler.counters()
        assert counters["prefix_cache_hit_tokens"] <= counters["prefix_cache_query_tokens"]
        assert counters["draft_accepted_tokens"] <= counters["draft_proposed_tokens"]
        assert counters["steps"] == self.runner.steps
        self.scheduler.reset_prefix_cache()
        assert self.scheduler.blocks.num_cached == 0
        self.scheduler.check()
