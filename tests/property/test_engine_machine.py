"""Random traffic through the real engine on a tiny random model: every answer equals that of the request alone.

Real scheduler, real KV-cache, real kernels and sampler, in float32 and in memory for about two sequences, so that the
traffic preempts, shares prefixes, chunks and verifies drafts. The native step computes a sequence to the same bits whatever runs beside
it, so equality is exact, drawn tokens included.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from inferoptim.config import EngineConfig, SamplingParams
from inferoptim.engine.core import EngineCore
from inferoptim.engine.request import FinishReason, Request
from inferoptim.kernels import cpu
from tests.tiny import save_tiny_llama, tiny_tokenizer

pytestmark = pytest.mark.skipif(
    cpu.why_not() is not None, reason=f"no native step here, so no exact equality: {cpu.why_not()}"
)

MAX_MODEL_LEN, BLOCK = 48, 4
EOS = frozenset({2})
OFF = {
    "in_flight_batching": False, "paged_kv": False, "prefix_caching": False, "chunked_prefill": False,
}  # fmt: skip
ON = dict.fromkeys(OFF, True)
LEVERS: tuple[dict[str, object], ...] = (
    OFF,
    {**OFF, "paged_kv": True},
    {**ON, "prefix_caching": False, "chunked_prefill": False},
    ON,
    {**ON, "speculative": "prompt-lookup", "num_speculative_tokens": 4},
    {**ON, "speculative": "draft", "draft_model": "self:1", "num_speculative_tokens": 3},
    {**OFF, "in_flight_batching": True, "speculative": "prompt-lookup"},
)
PREFIXES = [(), (5, 6, 7, 8, 9, 10, 11, 12, 13), (5, 6, 7, 8, 30, 31, 32, 33, 34, 35, 36, 37), (40, 41) * 7]
PROMPTS = st.builds(
    lambda prefix, rest: (*prefix, *rest),
    st.sampled_from(PREFIXES),
    st.lists(st.integers(3, 40), min_size=1, max_size=8),
)
SAMPLINGS = st.builds(
    lambda kind, most, least, ignore_eos, stop: SamplingParams(
        max_tokens=most, min_tokens=min(least, most), ignore_eos=ignore_eos, stop_token_ids=stop, **kind
    ),
    st.sampled_from(
        [
            {"temperature": 0.0},
            {"temperature": 0.0, "repetition_penalty": 1.3, "frequency_penalty": 0.4},
            {"temperature": 1.0, "seed": 11},
            {"temperature": 2.5, "top_k": 20, "seed": 12},
            {"temperature": 1.5, "top_p": 0.7, "min_p": 0.01, "presence_penalty": 0.5, "seed": 13},
        ]
    ),
    st.integers(1, 24),
    st.integers(0, 6),
    st.booleans(),
    st.sampled_from([(), (7, 19)]),
)


ENGINES: list[EngineCore] = []  # one a lever set, kept over the examples: each must leave it empty
LONELY: list[EngineCore] = []


@pytest.fixture(scope="module", autouse=True)
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("engine-machine")
    save_tiny_llama(folder, initializer_range=0.08)  # flat enough that draws differ
    tiny_tokenizer(folder)
    ENGINES[:] = [EngineCore(config(folder, levers, max_num_seqs=4, blocks=26)) for levers in LEVERS]
    for core in ENGINES:
        if core._speculator is not None:  # as many as they are, whether they pay on this machine or not
            core._speculator._length.choose = lambda *_: 3  # type: ignore[method-assign]
    LONELY[:] = [EngineCore(config(folder, OFF, max_num_seqs=1, blocks=16))]
    yield
    _alone.cache_clear()
    ENGINES.clear()
    LONELY.clear()


def config(folder: Path, levers: dict[str, object], *, max_num_seqs: int, blocks: int) -> EngineConfig:
    token_bytes = 2 * 2 * 2 * 16 * 4  # layers, K and V, heads, head size, float32
    if levers.get("speculative") == "draft":
        token_bytes += token_bytes // 2
    return EngineConfig.create(
        model=str(folder),
        dtype="float32",
        kernels="native",
        num_threads=1,
        max_model_len=MAX_MODEL_LEN,
        block_size=BLOCK,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=12,
        kv_budget_bytes=blocks * BLOCK * token_bytes,
        **levers,
    )


def alone(prompt: tuple[int, ...], sampling: SamplingParams) -> tuple[tuple[int, ...], FinishReason]:
    """Answer of a request that has a plain engine to itself."""
    return _alone(prompt, sampling.model_dump_json())


@cache
def _alone(prompt: tuple[int, ...], sampling: str) -> tuple[tuple[int, ...], FinishReason]:
    core, tokens, reason = LONELY[0], [], None
    core.add(Request("alone", prompt, SamplingParams.model_validate_json(sampling), 0.0, EOS))
    while core.has_work:
        for output in core.step():
            tokens += output.token_ids
            reason = output.finish_reason
    assert reason is not None
    return tuple(tokens), reason


class EngineMachine(RuleBasedStateMachine):
    """Arrivals, steps, aborts and stops from outside, in any order."""

    def __init__(self, core: EngineCore) -> None:
        super().__init__()
        self.core = core
        for number in range(200):  # what an example that failed has left, so that the next one is not blamed
            self.core.abort(f"r{number}")
        self.core.reset_prefix_cache()
        self.asked: dict[str, tuple[tuple[int, ...], SamplingParams]] = {}
        self.got: dict[str, list[int]] = {}
        self.live: set[str] = set()
        self.count = 0

    @rule(prompts=st.lists(PROMPTS, min_size=1, max_size=5), sampling=SAMPLINGS)
    def arrive(self, prompts: list[tuple[int, ...]], sampling: SamplingParams) -> None:
        for prompt in prompts:
            name = f"r{self.count}"
            self.count += 1
            self.core.add(Request(name, prompt, sampling, 0.0, EOS))
            self.asked[name], self.got[name] = (prompt, sampling), []
            self.live.add(name)

    @rule(times=st.integers(1, 10))
    def steps(self, times: int) -> None:
        for _ in range(times):
            self._step()
        self.core.check()

    @precondition(lambda self: self.live)
    @rule(data=st.data(), stop=st.booleans())
    def leave(self, data: st.DataObject, stop: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.live)))
        (self.core.finish if stop else self.core.abort)(name)
        self.live.remove(name)
        whole, _ = alone(*self.asked[name])
        assert tuple(self.got[name]) == whole[: len(self.got[name])]
        self.core.check()

    def _step(self) -> None:
        for output in self.core.step():
            name = output.request_id
            assert name in self.live, "an answer to somebody who left"
            self.got[name] += output.token_ids
            if output.finish_reason is not None:
                self.live.remove(name)
                assert (tuple(self.got[name]), output.finish_reason) == alone(*self.asked[name])

    def teardown(self) -> None:
        for _ in range(3000):
            if not self.core.has_work:
                break
            self._step()
        assert not self.live, "somebody never ended"
        self.core.check()
        held = self.core.kv_usage()
        assert {held[k] for k in ("running", "waiting", "kv_used_tokens", "kv_reserved_tokens")} == {0}


@pytest.mark.parametrize("levers", range(len(LEVERS)), ids=lambda i: "-".join(map(str, LEVERS[i].values())))
def test_every_answer_under_random_traffic_is_that_of_the_request_alone(levers: int) -> None:
    run_state_machine_as_test(
        lambda: EngineMachine(ENGINES[levers]),
        settings=settings(
            max_examples=7,
            stateful_step_count=20,
            deadline=None,
            report_multiple_bugs=False,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


def test_such_traffic_preempts_shares_and_verifies() -> None:
    """Memory, lengths and levers above are such that this happens: a machine that never did it would prove nothing."""
    seen: dict[str, float] = {}
    for core in ENGINES:
        before = core.counters()
        machine = EngineMachine(core)
        for rest in ((10, 11, 12), (20,)):
            greedy = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)
            machine.arrive([(*PREFIXES[1], *rest, last) for last in range(10, 15)], greedy)
            machine.steps(10)
        machine.teardown()
        for name, value in core.counters().items():
            seen[name] = seen.get(name, 0) + value - before[name]
    assert seen["preemptions"] > 0
    assert seen["prefix_cache_hit_tokens"] > 0
    assert seen["draft_accepted_tokens"] > 0
