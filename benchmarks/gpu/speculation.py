"""Speculative decoding on real text: summaries that quote the prompt, at one request and in batches."""

from __future__ import annotations

import gc
import statistics
import time
from typing import Any

import torch

from inferoptim.bench import workload
from inferoptim.config import EngineConfig, SamplingParams
from inferoptim.engine.core import EngineCore
from inferoptim.engine.request import Request

LENGTHS = (384, 128)
SIDES: dict[str, dict[str, Any]] = {
    "off": {},
    "prompt-lookup": {"speculative": "prompt-lookup"},
    "prompt-lookup, 10": {"speculative": "prompt-lookup", "num_speculative_tokens": 10},
    "draft self:8": {"speculative": "draft", "draft_model": "self:8"},
}


def measure(model: str, batches: list[int], repeats: int, sides: list[str]) -> dict[str, Any]:
    """Seconds of the same requests with and without speculation; proposals, and how many tokens are the same."""
    from inferoptim.models.hub import resolve_model
    from inferoptim.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(resolve_model(model).folder)
    most = max(batches)
    made = workload.build(
        "summarise", tokenizer, num_requests=max(most, 8), input_tokens=LENGTHS[0], output_tokens=LENGTHS[1]
    )
    prompts = [r.prompt_token_ids for r in made.requests]
    out: dict[str, Any] = {}
    answers: dict[str, dict[int, list[list[int]]]] = {}
    for side in sides:
        core = EngineCore(
            EngineConfig.create(
                model=model, device="cuda", max_model_len=sum(LENGTHS) + 32, max_num_seqs=most, max_num_batched_tokens=8192,
                prefix_caching=False, kv_budget_bytes=8 << 30, **SIDES[side],
            )
        )  # fmt: skip
        out[side], answers[side] = {}, {}
        for batch in batches:
            groups = [[p] for p in prompts[:8]] if batch == 1 else [prompts[:batch]]
            _run(core, groups)
            before, times = core.counters(), []
            for _ in range(repeats):
                began = time.perf_counter()
                answers[side][batch] = _run(core, groups)
                times.append(time.perf_counter() - began)
            after = core.counters()
            gained = {
                k: (after[k] - before[k]) / repeats for k in before if k.startswith("draft") or k == "steps"
            }
            seconds = statistics.median(times)
            same, total = _agreement(answers["off"][batch], answers[side][batch])
            out[side][batch] = {
                "seconds": seconds, "times_s": times, "ratio": out["off"][batch]["seconds"] / seconds if side != "off" else 1.0,
                "output_tokens_per_s": sum(map(len, answers[side][batch])) / seconds, "same_tokens": same, "tokens": total,
                "identical_answers": sum(
                    a == b for a, b in zip(answers["off"][batch], answers[side][batch], strict=True)
                ),
                "answers": len(answers[side][batch]), **gained,
            }  # fmt: skip
            print(side, batch, out[side][batch], flush=True)  # what is known if time runs out
        del core
        gc.collect()
        torch.cuda.empty_cache()
    return out


def _run(core: EngineCore, groups: list[list[tuple[int, ...]]]) -> list[list[int]]:
    sampling = SamplingParams(temperature=0, max_tokens=LENGTHS[1], ignore_eos=True)
    given: dict[str, list[int]] = {}
    for number, group in enumerate(groups):
        for index, prompt in enumerate(group):
            name = f"{time.perf_counter()}/{number}/{index}"
            given[name] = []
            core.add(Request(name, prompt, sampling, time.perf_counter()))
        while core.has_work:
            for output in core.step():
                given[output.request_id] += output.token_ids
    return list(given.values())


def _agreement(a: list[list[int]], b: list[list[int]]) -> tuple[int, int]:
    """Tokens up to where two answers part, and all tokens."""
    same = 0
    for x, y in zip(a, b, strict=True):
        same += next((i for i, (p, q) in enumerate(zip(x, y, strict=True)) if p != q), len(x))
    return same, sum(map(len, a))
