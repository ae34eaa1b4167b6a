"""The CUDA decoder, runner and plans made ahead, against plain torch operators on the same random weights.

With a GPU: the real thing, every lever. Without one: the same Python around interpreted kernels, so that indices, block
tables, bursts and verification are tested anywhere; graph capture and concurrency are not.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.gpu.agreement import CASES, compare

from inferoptim import LLM, EngineConfig, SamplingParams
from tests.tiny import save_tiny_llama, tiny_tokenizer


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_tokens_are_those_of_torch_operators_up_to_near_ties(case: str):
    seen = compare(case)
    assert seen["passed"], seen


class HostEvent:
    """What an event is on a device that does everything at once."""

    def __init__(self, enable_timing: bool = False) -> None:
        self._at = 0.0

    def record(self) -> None:
        self._at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: HostEvent) -> float:
        return (end._at - self._at) * 1e3


def use_cuda_path_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on an engine on the CPU runs the CUDA decoder and runner."""
    from inferoptim.engine import assembly, cuda_runner, loading
    from inferoptim.kernels.triton import attention
    from inferoptim.models import cuda

    def compile_(decoder: Any, config: Any) -> Any:
        return cuda.CudaDecoder(
            decoder,
            max_num_seqs=config.max_num_seqs,
            max_tokens=config.max_num_batched_tokens,
            max_model_len=config.max_model_len,
        )

    class HostRunner(cuda_runner.CudaRunner):
        def __init__(self, decoder: Any, kv: Any, **fields: Any) -> None:
            super().__init__(decoder, kv, graphs=False, **fields)
            self.run_ahead = True

        @property
        def burst_steps(self) -> int:
            return 4

    monkeypatch.setattr(torch.cuda, "Event", HostEvent)
    monkeypatch.setattr(cuda, "unsupported", lambda decoder: None)
    monkeypatch.setattr(
        attention, "num_splits", lambda rows, heads, programs: 2
    )  # the interpreter takes its time for each
    monkeypatch.setattr(loading, "_compile", compile_)
    monkeypatch.setattr(assembly, "Runner", HostRunner)


def generate(model: Path, **fields: object) -> list[list[int]]:
    settings = {
        "dtype": "float16", "max_model_len": 48, "max_num_seqs": 5, "max_num_batched_tokens": 24, "block_size": 4,
    }  # fmt: skip
    llm = LLM(EngineConfig.create(model=str(model), kernels="torch", **{**settings, **fields}))
    prompts = [[7, 9, 11, 30][: 1 + i % 4] * (1 + i) for i in range(6)]
    samplings = [SamplingParams(temperature=0, max_tokens=1 + 3 * (i % 4), ignore_eos=True) for i in range(6)]
    drawn: list[dict[str, Any]] = [
        {"temperature": 0.9, "top_k": 5, "seed": 3, "max_tokens": 6},
        {"temperature": 1.3, "top_p": 0.8, "min_p": 0.01, "seed": 4, "frequency_penalty": 1.5, "max_tokens": 8},
        {"temperature": 0, "repetition_penalty": 1.7, "presence_penalty": 0.5, "max_tokens": 8},
        {"temperature": 2, "seed": 5, "logit_bias": {9: 4.0, 11: -3.0}, "stop_token_ids": (9,), "min_tokens": 3, "max_tokens": 6},
    ]  # fmt: skip
    samplings += [SamplingParams(ignore_eos=True, **fields) for fields in drawn]
    prompts += [[5 + i, 9, 9, 12, 7][: 2 + i] for i in range(len(drawn))]
    done = llm.generate(prompts, samplings)
    llm.core.check()
    return [o.token_ids for o in done]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the test above runs on it")
@pytest.mark.parametrize("fields", [{}, {"max_num_seqs": 2, "speculative": "prompt-lookup"}], ids=str)
def test_the_python_around_the_kernels(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, object]
):
    from inferoptim.models import cuda

    save_tiny_llama(tmp_path)
    tiny_tokenizer(tmp_path)
    expected = generate(tmp_path, **fields)
    use_cuda_path_on_cpu(monkeypatch)
    monkeypatch.setattr(cuda, "_ADDING_ROWS", 9)  # some steps have as many tokens, some have not
    assert generate(tmp_path, **fields) == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="without a GPU only: speculation is switched by hand")
def test_while_speculation_is_paused_plans_are_long_and_made_ahead(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from itertools import cycle

    from inferoptim.engine import core, draft_length, proposers, speculative

    save_tiny_llama(tmp_path)
    tiny_tokenizer(tmp_path)
    use_cuda_path_on_cpu(monkeypatch)
    expected = generate(tmp_path, max_num_seqs=2)
    lengths, plans = cycle([0, 2]), []
    monkeypatch.setattr(speculative, "_LOOK_EVERY", 2)
    monkeypatch.setattr(draft_length.DraftLength, "choose", lambda self, *_: next(lengths))
    monkeypatch.setattr(draft_length.DraftLength, "may_soon_pay", lambda self, num_sequences: False)
    # this tiny model repeats nothing, so what is proposed is anything; a wrong proposal changes no output
    monkeypatch.setattr(
        proposers.PromptLookupProposer,
        "propose",
        lambda self, sequences, most: {s.request.request_id: [7] * most for s in sequences},
    )
    launch = core.EngineCore._launch

    def watched(self: Any, runner: Any) -> Any:
        launched = launch(self, runner)
        plans.append((launched.plan.num_steps, bool(launched.plan.draft_tokens), len(self._launched)))
        return launched

    monkeypatch.setattr(core.EngineCore, "_launch", watched)
    assert generate(tmp_path, max_num_seqs=2, speculative="prompt-lookup") == expected
    assert any(steps > 1 for steps, _, _ in plans), "no plan of many steps"
    assert any(ahead for _, _, ahead in plans), "no plan made ahead"
    assert any(drafts for _, drafts, _ in plans), "speculation never came back"
    assert not any(drafts and ahead for _, drafts, ahead in plans)


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="without a GPU only: it looks at a plan that is still out"
)
def test_leaving_while_a_plan_made_ahead_is_out_harms_nobody(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save_tiny_llama(tmp_path)
    tiny_tokenizer(tmp_path)
    use_cuda_path_on_cpu(monkeypatch)
    llm = LLM(
        EngineConfig.create(
            model=str(tmp_path), kernels="torch", dtype="float16", max_model_len=48, max_num_seqs=2
        )
    )
    sampling = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    alone = llm.generate([[7, 9, 11]], sampling)[0].token_ids
    for i, _ in enumerate(llm.stream([30, 7], sampling)):
        if i == 1:
            break
    assert llm.core._launched, "the second plan was meant to be out"
    assert not llm.core.has_work
    assert llm.generate([[7, 9, 11]], sampling)[0].token_ids == alone
    llm.core.check()


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="without a GPU only: memory runs out where the test says"
)
@pytest.mark.parametrize("fields", [{}, {"in_flight_batching": False, "chunked_prefill": False}], ids=str)
def test_a_step_without_memory_is_made_smaller(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, object]
):
    from inferoptim.models import cuda

    save_tiny_llama(tmp_path)
    tiny_tokenizer(tmp_path)
    use_cuda_path_on_cpu(monkeypatch)
    settings: dict[str, Any] = {
        "dtype": "float16", "max_model_len": 48, "max_num_seqs": 5, "max_num_batched_tokens": 24, "block_size": 4,
    }  # fmt: skip
    llm = LLM(EngineConfig.create(model=str(tmp_path), kernels="torch", **{**settings, **fields}))
    prompts = [[7, 9, 11, 30][: 1 + i % 4] * (1 + i) for i in (1, 2, 3, 4)]
    sampling = SamplingParams(temperature=0, max_tokens=4, frequency_penalty=0.5, ignore_eos=True)
    scored = SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=0, ignore_eos=True)
    expected = [o.token_ids for o in llm.generate(prompts, sampling)]
    buffers_for = cuda.CudaDecoder._buffers_for

    def short_of_memory(decoder: Any, tokens: int) -> Any:
        if tokens > most:
            raise torch.OutOfMemoryError("CUDA out of memory (injected)")
        return buffers_for(decoder, tokens)

    monkeypatch.setattr(cuda.CudaDecoder, "_buffers_for", short_of_memory)
    llm.core.reset_prefix_cache()
    before = llm.core.counters()["preemptions"]
    most = 17  # some steps take more, no single prompt does
    assert [o.token_ids for o in llm.generate(prompts, sampling)] == expected
    assert llm.core.counters()["preemptions"] > before
    llm.core.check()
    most = 8  # a prompt in two parts, one of them twice: its log-probabilities come once
    llm.core.reset_prefix_cache()
    if not fields:
        found = llm.generate([prompts[1], prompts[0]], [scored, sampling])[0]
        assert [p.token_id for p in found.prompt_logprobs or ()] == prompts[1][1:]
    most = 0  # nothing can be computed at all: the request ends with an error, and the engine goes on
    llm.core.reset_prefix_cache()
    assert llm.generate([prompts[0]], sampling)[0].finish_reason == "error"
    most = 20
    llm.core.reset_prefix_cache()
    assert llm.generate([prompts[0]], sampling)[0].token_ids == expected[0]
    llm.core.check()


@pytest.mark.parametrize(
    ("fields", "quantization", "reason"),
    [
        ({}, "none", None),
        ({"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 20}, "none", "head size 20"),
        ({"intermediate_size": 100}, "int8", "multiples of 16"),
        ({"intermediate_size": 100}, "none", None),
        ({"num_attention_heads": 66, "num_key_value_heads": 1, "head_dim": 16}, "none", "66 query heads"),
    ],
    ids=str,
)
def test_shapes_that_the_kernels_cannot_take_are_named(
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, object],
    quantization: str,
    reason: str | None,
):
    from benchmarks.gpu.random_model import random_decoder

    from inferoptim.models.cuda import unsupported

    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "vocab_size": 64,
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", **fields,
    }  # fmt: skip
    decoder = random_decoder(
        config, device=torch.device("cpu"), dtype=torch.bfloat16, quantization=quantization
    )
    monkeypatch.setattr(decoder, "device", torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    found = unsupported(decoder)
    assert found is None if reason is None else found is not None and reason in found
