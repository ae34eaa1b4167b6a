"""Lossless levers on and off: token-identical greedy output in fp32, on a tiny random model and mixed lengths."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from inferoptim import LLM, EngineConfig, SamplingParams
from inferoptim.errors import CapacityError, RequestError
from tests.tiny import save_tiny_llama, tiny_tokenizer

OFF: dict[str, object] = {
    "compiled_step": False,
    "in_flight_batching": False,
    "paged_kv": False,
    "prefix_caching": False,
    "chunked_prefill": False,
}
ALL_ON: dict[str, object] = {
    "compiled_step": True,
    "in_flight_batching": True,
    "paged_kv": True,
    "prefix_caching": True,
    "chunked_prefill": True,
}
ONE_ON: list[dict[str, object]] = [
    {**OFF, "compiled_step": True},
    {**OFF, "in_flight_batching": True},
    {**OFF, "paged_kv": True},
    {**OFF, "paged_kv": True, "prefix_caching": True},
    {**OFF, "in_flight_batching": True, "chunked_prefill": True},
    {**OFF, "speculative": "prompt-lookup"},
    {**OFF, "speculative": "draft", "draft_model": "self:1"},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_llama(folder)
    tiny_tokenizer(folder)
    return folder


def build(model: Path, **fields: object) -> LLM:
    settings = {
        "dtype": "float32",
        "num_threads": 1,  # test_native_threads.py has the others
        "max_model_len": 96,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 24,
        "block_size": 4,
    }
    return LLM(EngineConfig.create(model=str(model), **{**settings, **fields}))


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    shared = torch.randint(5, 200, (17,), generator=generator).tolist()
    lengths = [1, 2, 5, 30, 41, 7, 16, 33]
    tails = [torch.randint(5, 200, (n,), generator=generator).tolist() for n in lengths]
    return [(shared if i % 2 else []) + tail for i, tail in enumerate(tails)] + [tails[3], tails[3] * 2]


def samplings(count: int, **fields: object) -> list[SamplingParams]:
    return [
        SamplingParams.create(
            **{"temperature": 0, "max_tokens": 3 + 5 * (i % 4), "ignore_eos": True, **fields}
        )
        for i in range(count)
    ]


def outputs(llm: LLM, **fields: object) -> list[list[int]]:
    asked = prompts()
    done = llm.generate(asked, samplings(len(asked), **fields))
    llm.core.check()
    assert llm.core.kv_usage()["running"] == 0
    return [o.token_ids for o in done]


@pytest.fixture(scope="module")
def expected(model: Path) -> list[list[int]]:
    llm = build(model, **OFF)
    return [
        llm.generate([p], s)[0].token_ids for p, s in zip(prompts(), samplings(len(prompts())), strict=True)
    ]


@pytest.mark.parametrize(
    "levers",
    [
        OFF,
        *ONE_ON,
        ALL_ON,
        {**ALL_ON, "kernels": "torch"},
        {**ALL_ON, "speculative": "prompt-lookup"},
        {**ALL_ON, "speculative": "draft", "draft_model": "self:1", "num_speculative_tokens": 3},
    ],
    ids=str,
)
def test_levers_change_nothing_in_greedy_output(
    model: Path, expected: list[list[int]], levers: dict[str, object]
):
    assert outputs(build(model, **levers)) == expected


@pytest.mark.parametrize(
    "levers",
    [
        {**ALL_ON},
        {**ALL_ON, "speculative": "prompt-lookup"},
        {**ALL_ON, "speculative": "draft", "draft_model": "self:1"},
    ],
    ids=str,
)
def test_seeded_sampling_is_the_same_under_every_lever(model: Path, levers: dict[str, object]):
    fields: dict[str, object] = {"temperature": 0.8, "top_p": 0.9, "seed": 11, "repetition_penalty": 1.1}
    assert outputs(build(model, **levers), **fields) == outputs(build(model, **OFF), **fields)


def test_a_draft_model_of_its_own_changes_nothing(model: Path, expected: list[list[int]], tmp_path: Path):
    save_tiny_llama(
        tmp_path, num_hidden_layers=1, hidden_size=32, num_attention_heads=2, num_key_value_heads=1
    )
    tiny_tokenizer(tmp_path)
    llm = build(model, **ALL_ON, speculative="draft", draft_model=str(tmp_path))
    assert outputs(llm) == expected


@pytest.mark.parametrize("native", [False, True], ids=["torch", "native"])
@pytest.mark.parametrize(
    "lossy",
    [{"kv_quantization": "int8"}, {"quantization": "int8"}, {"quantization": "int8-weight-only"}],
    ids=str,
)
def test_lossless_levers_change_nothing_on_top_of_lossy_ones(
    model: Path, lossy: dict[str, object], native: bool
):
    one_kernel_set = {**lossy, "compiled_step": native}
    assert outputs(build(model, **{**ALL_ON, **one_kernel_set})) == outputs(
        build(model, **{**OFF, **one_kernel_set})
    )


@pytest.mark.parametrize("native", [False, True], ids=["torch", "native"])
@pytest.mark.parametrize(
    "lossy",
    [{"kv_quantization": "int8"}, {"quantization": "int8"}, {"quantization": "int8-weight-only"}],
    ids=str,
)
def test_lossy_levers_stay_near_and_are_not_without_effect(
    model: Path, lossy: dict[str, object], native: bool
):
    tokens = prompts()[4]
    exact, near = (
        torch.from_numpy(build(model, **{**ALL_ON, "compiled_step": native, **fields}).core.logits(tokens))
        for fields in ({}, lossy)
    )
    error = (near - exact).norm() / exact.norm()
    assert 1e-5 < error < 0.1


def test_preemption_changes_nothing(model: Path):
    one_token = 2 * 2 * 2 * 16 * 4  # K and V, layers, KV heads, head size, float32
    llm = build(model, **ALL_ON, kv_budget_bytes=one_token * 100)
    assert outputs(llm, max_tokens=36) == outputs(build(model, **OFF), max_tokens=36)
    assert llm.core.counters()["preemptions"] > 0, "this budget was meant to be too small for four sequences"


def test_a_second_run_hits_the_prefix_cache_and_says_the_same(model: Path, expected: list[list[int]]):
    llm = build(model, **ALL_ON)
    assert outputs(llm) == expected
    before = llm.core.counters()["prefix_cache_hit_tokens"]
    assert outputs(llm) == expected
    assert llm.core.counters()["prefix_cache_hit_tokens"] > before
    llm.core.reset_prefix_cache()
    before = llm.core.counters()["prefix_cache_hit_tokens"]
    llm.generate([prompts()[4]], SamplingParams(temperature=0, max_tokens=2))
    assert llm.core.counters()["prefix_cache_hit_tokens"] == before


def test_logprobs_and_prompt_logprobs_agree_with_the_logits(model: Path):
    llm = build(model, **ALL_ON)
    prompt = prompts()[4]
    out = llm.generate(
        [prompt], SamplingParams(temperature=0, max_tokens=5, logprobs=3, prompt_logprobs=2, ignore_eos=True)
    )[0]
    reference = torch.log_softmax(torch.from_numpy(llm.core.logits(prompt + out.token_ids)), -1)
    assert out.logprobs is not None
    assert out.prompt_logprobs is not None
    assert len(out.prompt_logprobs) == len(prompt) - 1
    for i, entry in enumerate(out.prompt_logprobs):
        assert entry.token_id == prompt[i + 1]
        assert entry.logprob == pytest.approx(reference[i, entry.token_id].item(), abs=1e-4)
    for i, entry in enumerate(out.logprobs):
        assert entry.logprob == pytest.approx(reference[len(prompt) - 1 + i, entry.token_id].item(), abs=1e-4)
        assert entry.top[0][0] == entry.token_id


def test_min_tokens_and_stop_ids(model: Path):
    llm = build(model, **ALL_ON)
    free = llm.generate([prompts()[3]], SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))[
        0
    ].token_ids
    stop = free[4]
    out = llm.generate(
        [prompts()[3]], SamplingParams(temperature=0, max_tokens=12, stop_token_ids=(stop,), ignore_eos=True)
    )[0]
    assert out.token_ids == free[: free.index(stop) + 1]
    assert out.finish_reason == "stop"
    out = llm.generate(
        [prompts()[3]],
        SamplingParams(temperature=0, max_tokens=12, min_tokens=8, stop_token_ids=(stop,), ignore_eos=True),
    )[0]
    assert len(out.token_ids) >= 8
    assert stop not in out.token_ids[:7]


def test_leaving_a_stream_frees_its_blocks(model: Path):
    llm = build(model, **ALL_ON)
    for i, _ in enumerate(llm.stream(prompts()[3], SamplingParams(max_tokens=40, ignore_eos=True))):
        if i == 3:
            break
    assert not llm.core.has_work
    assert llm.core.kv_usage()["kv_reserved_tokens"] == 0
    llm.core.check()


def test_bad_requests_are_refused_in_one_line_and_the_engine_goes_on(model: Path, expected: list[list[int]]):
    llm = build(model, **ALL_ON)
    with pytest.raises(RequestError, match="empty"):
        llm.generate([[]])
    with pytest.raises(RequestError, match="96"):
        llm.generate([[7] * 96])
    with pytest.raises(RequestError, match="outside the vocabulary"):
        llm.generate([[7, 10**6]])
    with pytest.raises(RequestError, match="2 prompts"):
        llm.generate([[7], [8]], [SamplingParams()])
    assert not llm.core.has_work
    assert outputs(llm) == expected


def test_a_budget_too_small_for_one_request_says_what_would_do(model: Path):
    with pytest.raises(CapacityError, match="kv_budget_bytes >="):
        build(model, **ALL_ON, kv_budget_bytes=4096)
