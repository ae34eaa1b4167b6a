"""The engine's tokens against plain torch operators on the same random weights, under every lever of the GPU.

Every generated token must be the reference's likeliest one, up to a near-tie: the reference (torch operators, same
weights, same type) is given the engine's own output and says how far below its maximum each chosen token stands.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.gpu.random_model import random_engine
from inferoptim.config import SamplingParams
from inferoptim.engine.core import EngineCore
from inferoptim.engine.request import Request

NEAR_TIE = 0.04  # of the largest logit's size
# Activations quantised at run time: a value near a rounding edge falls to either side, a quantum apart.
_NEAR_TIE_QUANTISED = {"int8": 0.12, "fp8": 0.35}
# Keys and values that differ in their last bit before they are quantised may do so by an eighth after: logits are twice as far
# from the reference's as with a cache that is not quantised.
_NEAR_TIE_KV = {"fp8": 0.08}
# ||logits - reference|| / ||reference|| may be this many times what the reference itself is off float32 on the same
# weights: two that round as much, each in its own way, differ by 1.4 times that. With quantised activations: what
# quantisation itself changes.
_TIMES_OWN_ERROR = 1.5

_BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "hidden_act": "silu",
    "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": 2, "vocab_size": 1504, "hidden_size": 512, "intermediate_size": 1408,
    "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 2,
}  # fmt: skip
_ENGINE: dict[str, Any] = {
    "device": "cuda", "max_model_len": 512, "max_num_seqs": 24, "max_num_batched_tokens": 256, "block_size": 16,
}  # fmt: skip
_STATIC = {"in_flight_batching": False, "chunked_prefill": False, "paged_kv": False, "prefix_caching": False}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bf16": ({}, {}),
    "fp16": ({}, {"dtype": "float16"}),
    "fp8": ({}, {"quantization": "fp8"}),
    "int8": ({}, {"quantization": "int8"}),
    "int8 weight-only": ({}, {"quantization": "int8-weight-only"}),
    "fp8 kv": ({}, {"kv_quantization": "fp8"}),
    "int8 kv": ({}, {"kv_quantization": "int8"}),
    "fp8, fp8 kv": ({}, {"quantization": "fp8", "kv_quantization": "fp8"}),
    "no graphs": ({}, {"compiled_step": False}),
    "static, contiguous": ({}, _STATIC),
    "all off": ({}, {**_STATIC, "compiled_step": False}),
    "prompts whole": ({}, {"chunked_prefill": False}),
    "one row": ({}, {"max_num_seqs": 1}),
    "three rows": ({}, {"max_num_seqs": 3}),
    "preemptions": ({}, {"kv_budget_bytes": 3 * 2 * 2 * 64 * 2 * 700}),
    "prompt lookup": ({"vocab_size": 24}, {"speculative": "prompt-lookup"}),
    "draft": ({}, {"speculative": "draft", "draft_model": "self:1"}),
    "head size 128, group 1": ({"num_attention_heads": 4, "num_key_value_heads": 4}, {}),
    "head size 32, group 16": ({"num_attention_heads": 16, "num_key_value_heads": 1}, {}),
    "Qwen2 bias": ({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}, {}),
    "Qwen3 head norms": ({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 64}, {}),
    "Mistral window": (
        {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 40},
        {},
    ),
}


def requests(count: int, vocab: int, seed: int, longest: int = 300) -> list[Request]:
    """Mixed lengths, some sharing a prefix, some repeating themselves (for prompt lookup)."""
    rng = np.random.default_rng(seed)
    shared = rng.integers(5, vocab, 70).tolist()
    out = []
    for i in range(count):
        own = rng.integers(5, vocab, int(rng.integers(1, longest))).tolist()
        prompt = shared + own if i % 3 == 0 else (own[:20] * 4 if i % 3 == 1 else own)
        sampling = SamplingParams(temperature=0, max_tokens=int(rng.integers(1, 60)), ignore_eos=True)
        out.append(Request(f"r{i}", tuple(prompt[:400]), sampling, time.perf_counter()))
    return out


def generate(core: EngineCore, asked: list[Request]) -> dict[str, list[int]]:
    """All requests at once, to the end, the accounting checked at every step."""
    given: dict[str, list[int]] = {r.request_id: [] for r in asked}
    for request in asked:
        core.add(request)
    while core.has_work:
        for output in core.step():
            given[output.request_id] += output.token_ids
        core.check()
    return given


def compare(name: str) -> dict[str, Any]:
    """Run one case; what was seen, 'passed' among it."""
    model, engine = CASES[name]
    config = {**_BASE, **model}
    core = random_engine(config, scale=0.06, **{**_ENGINE, **engine})
    asked = requests(40, config["vocab_size"], seed=len(name))
    given = generate(core, asked)
    counters = core.counters()
    # the reference keeps the weights' and the cache's quantisation, and computes one sequence at a time
    plain = {k: v for k, v in engine.items() if k in ("quantization", "kv_quantization", "dtype")}
    judge = random_engine(config, scale=0.06, **{**_ENGINE, "max_num_seqs": 1, **plain, "kernels": "torch"})
    worst, tokens, same = 0.0, 0, 0
    for request in asked:
        output = given[request.request_id]
        assert len(output) == request.sampling.max_tokens, (
            f"{len(output)} tokens of {request.sampling.max_tokens}"
        )
        whole = [*request.prompt_token_ids, *output]
        padded = whole + [7] * max(0, 32 - len(whole))  # torch's int8 product wants more than 16 rows
        logits = judge.logits(padded)[len(request.prompt_token_ids) - 1 : len(whole) - 1]
        chosen = logits[np.arange(len(output)), output]
        gap = (logits.max(1) - chosen) / np.abs(logits).max(1)
        worst, tokens, same = max(worst, float(gap.max())), tokens + len(output), same + int((gap == 0).sum())
    lossy = _NEAR_TIE_QUANTISED.get(engine.get("quantization", ""))
    tie = lossy or _NEAR_TIE_KV.get(engine.get("kv_quantization", ""), NEAR_TIE)
    samples = [[*r.prompt_token_ids] for r in asked if len(r.prompt_token_ids) >= 32][:4]
    error = max(_relative(core.logits(sample), judge.logits(sample)) for sample in samples)
    if lossy is None:
        other = {**plain, "dtype": "float32"}
        drawn_in = judge._decoder.dtype
    else:
        other, drawn_in = {k: v for k, v in plain.items() if k != "quantization"}, None
    exact = random_engine(
        config, scale=0.06, drawn_in=drawn_in, **{**_ENGINE, "max_num_seqs": 1, **other, "kernels": "torch"}
    )
    own = max(_relative(judge.logits(sample), exact.logits(sample)) for sample in samples)
    allowed = own if lossy is not None else _TIMES_OWN_ERROR * own
    wanted = {
        "preemptions": "preemptions",
        "prompt lookup": "draft_accepted_tokens",
        "draft": "draft_proposed_tokens",
    }
    happened = name not in wanted or counters[wanted[name]] > 0
    return {
        "case": name, "tokens": tokens, "agree": same / tokens, "worst_gap": worst, "counters": counters,
        "load_s": core.load_s, "logit_error": error, "logit_error_allowed": allowed,
        "passed": worst <= tie and error <= allowed and happened,
    }  # fmt: skip


def _relative(out: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(out - expected) / np.linalg.norm(expected))
