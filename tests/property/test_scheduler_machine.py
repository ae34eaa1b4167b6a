"""Random traffic through the scheduler: nothing leaks, everybody ends, outputs equal those of running alone."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from inferoptim.config import SamplingParams
from inferoptim.engine.planning import SchedulerConfig
from inferoptim.errors import RequestError
from tests.property.scheduler_harness import VOCABULARY, Harness

LEVERS = [  # in-flight batching, paged KV, prefix caching, chunked prefill
    (in_flight, paged, prefix, chunked)
    for in_flight in (True, False)
    for paged in (True, False)
    for prefix in (True, False)
    for chunked in (True, False)
    if (paged or not prefix) and (in_flight or not chunked)
]
PREFIXES = [(), (0, 1, 2, 4, 0, 1), (0, 1, 2, 4, 1, 1, 2, 0, 4, 0, 1, 2), (2,) * 9]
PROMPTS = st.builds(
    lambda prefix, rest: prefix + tuple(rest),
    st.sampled_from(PREFIXES),
    st.lists(st.integers(0, VOCABULARY - 1), max_size=12),
)


class SchedulerMachine(RuleBasedStateMachine):
    """Arrivals, steps, drafts, aborts and outside stops in any order, on any lever set, in little memory."""

    @initialize(
        levers=st.sampled_from(LEVERS),
        block_size=st.integers(1, 5),
        num_blocks=st.integers(1, 24),
        max_num_seqs=st.integers(1, 6),
        budget=st.integers(1, 24),
        max_model_len=st.integers(2, 48),
        seed=st.integers(0, 2**16),
    )
    def start(
        self,
        levers: tuple[bool, bool, bool, bool],
        block_size: int,
        num_blocks: int,
        max_num_seqs: int,
        budget: int,
        max_model_len: int,
        seed: int,
    ) -> None:
        in_flight, paged, prefix, chunked = levers
        if not paged:  # at least one slot
            num_blocks = max(num_blocks, -(-max_model_len // block_size))
        self.harness = Harness(
            SchedulerConfig(
                max_num_seqs, budget, max_model_len, block_size, in_flight, paged, prefix, chunked
            ),
            num_blocks,
            seed,
        )

    @rule(
        prompts=st.lists(PROMPTS, min_size=1, max_size=5),
        max_tokens=st.integers(1, 30),
        min_tokens=st.integers(0, 8),
        ignore_eos=st.booleans(),
        stop=st.sampled_from([(), (1,)]),
        salt=st.integers(0, 1),
        temperature=st.sampled_from([0.0, 0.0, 1.0]),
    )
    def arrive(
        self,
        prompts: list[tuple[int, ...]],
        max_tokens: int,
        min_tokens: int,
        ignore_eos: bool,
        stop: tuple[int, ...],
        salt: int,
        temperature: float,
    ) -> None:
        sampling = SamplingParams(
            temperature=temperature,
            max_tokens=max_tokens,
            min_tokens=min(min_tokens, max_tokens),
            ignore_eos=ignore_eos,
            stop_token_ids=stop,
        )
        for prompt in prompts:
            self.harness.arrive(prompt, sampling, salt)

    @rule(drafts=st.booleans(), times=st.integers(1, 8), most_steps=st.integers(1, 6), ahead=st.booleans())
    def steps(self, drafts: bool, times: int, most_steps: int, ahead: bool) -> None:
        for _ in range(times):
            if drafts:
                self.harness.propose()
            self.harness.step(most_steps=most_steps, ahead=ahead)

    @precondition(lambda self: self.harness.live)
    @rule(data=st.data(), while_out=st.booleans())
    def abort(self, data: st.DataObject, while_out: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.harness.live)))
        if while_out:
            self.harness.step(abort=name)
        else:
            self.harness.abort(name)

    @precondition(lambda self: self.harness.live)
    @rule(data=st.data())
    def stop_from_outside(self, data: st.DataObject) -> None:
        self.harness.stop(data.draw(st.sampled_from(sorted(self.harness.live))))

    @rule()
    def reset(self) -> None:
        scheduler = self.harness.scheduler
        if self.harness.live:
            with pytest.raises(RequestError, match="only while idle"):
                scheduler.reset_prefix_cache()
        else:
            scheduler.reset_prefix_cache()
            assert scheduler.blocks.num_cached == 0
        scheduler.check()

    def teardown(self) -> None:
        if hasattr(self, "harness"):
            self.harness.drain()


SchedulerMachine.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=30,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow],
)
TestScheduler = SchedulerMachine.TestCase


@pytest.mark.parametrize("levers", LEVERS, ids=lambda levers: "".join("-+"[on] for on in levers))
@pytest.mark.parametrize("seed", range(6))
def test_long_traffic(levers: tuple[bool, bool, bool, bool], seed: int) -> None:
    """Memory for a third of what arrives, for hundreds of steps: what the machine's short runs seldom reach."""
    chance = random.Random(seed)
    block_size = chance.choice([1, 2, 3, 4])
    num_blocks = 48 // block_size
    config = SchedulerConfig(
        chance.choice([3, 5, 8]), chance.choice([5, 9, 16, 40]), chance.choice([24, 48]), block_size, *levers
    )
    harness = Harness(config, num_blocks, seed)
    for _ in range(300):
        if len(harness.live) < 10 and chance.random() < 0.5:
            rest = tuple(chance.randrange(VOCABULARY) for _ in range(chance.randint(1, 8)))
            sampling = SamplingParams(
                temperature=float(chance.random() < 0.1),
                max_tokens=chance.randint(1, 30),
                ignore_eos=chance.random() < 0.8,
                min_tokens=0,
            )
            harness.arrive(chance.choice(PREFIXES) + rest, sampling, salt=int(chance.random() < 0.2))
        if chance.random() < 0.4:
            harness.propose()
        leaver = chance.choice(sorted(harness.live)) if harness.live and chance.random() < 0.05 else None
        harness.step(abort=leaver, most_steps=chance.choice([1, 1, 3, 8]), ahead=chance.random() < 0.7)
        if harness.live and chance.random() < 0.02:
            harness.abort(chance.choice(sorted(harness.live)))
        if harness.live and chance.random() < 0.02:
            harness.stop(chance.choice(sorted(harness.live)))
    harness.drain()
    _, paged, prefix, _ = levers
    counters = harness.scheduler.counters()
    assert len(harness.ended) > 20
    assert (counters["preemptions"] > 0) == paged, "this traffic exceeds the memory that paging shares"
    assert (counters["prefix_cache_hit_tokens"] > 0) == prefix
    assert counters["draft_accepted_tokens"] > 0


@pytest.mark.parametrize("levers", LEVERS, ids=lambda levers: "".join("-+"[on] for on in levers))
def test_plans_made_ahead(levers: tuple[bool, bool, bool, bool]) -> None:
    """Greedy traffic in memory that nearly suffices: plans of many steps, and plans before the last one's outcome."""
    chance = random.Random(7)
    config = SchedulerConfig(4, 24, 32, 3, *levers)
    harness = Harness(config, 48, 7)
    for _ in range(200):
        if len(harness.live) < 5 and chance.random() < 0.5:
            rest = tuple(chance.randrange(VOCABULARY) for _ in range(chance.randint(1, 8)))
            sampling = SamplingParams(
                temperature=0.0, max_tokens=chance.randint(1, 24), ignore_eos=chance.random() < 0.7
            )
            harness.arrive(chance.choice(PREFIXES) + rest, sampling)
        harness.step(most_steps=chance.choice([1, 4, 9]), ahead=True)
    harness.drain()
    assert len(harness.ended) > 40
    assert harness.ahead > 40


def test_prompts_planned_ahead() -> None:
    """Prompts longer than a step, most of them for one token: the next part goes out before the last one's outcome."""
    for lever in (True, False):
        chance = random.Random(11)
        harness = Harness(SchedulerConfig(4, 7, 48, 3, prefix_caching=lever), 40, 11)
        for _ in range(300):
            while len(harness.live) < 6:
                rest = tuple(chance.randrange(VOCABULARY) for _ in range(chance.randint(1, 30)))
                sampling = SamplingParams(temperature=0.0, max_tokens=chance.choice([1, 1, 1, 1, 3]))
                harness.arrive(chance.choice(PREFIXES) + rest, sampling)
            leaver = chance.choice(sorted(harness.live)) if chance.random() < 0.1 else None
            harness.step(abort=leaver, most_steps=4, ahead=True)
        harness.drain()
        assert len(harness.ended) > 40
        assert harness.prompts_ahead > 40
