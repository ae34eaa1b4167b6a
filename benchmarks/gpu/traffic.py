"""Random traffic with the block accounting checked at every step, and steps for which the card has no memory.

Requests arrive at random, of every kind of sampling, some sharing prefixes, some leaving half way, into a cache that is
too small for all of them: so sequences are preempted. Each that stays must get exactly its tokens.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.random_model import random_engine
from benchmarks.gpu.shapes import hf_config
from inferoptim.config import SamplingParams
from inferoptim.engine.core import EngineCore
from inferoptim.engine.request import FinishReason, Request, TokenOutput

_KINDS: tuple[dict[str, Any], ...] = (
    {"temperature": 0}, {"temperature": 1.0}, {"temperature": 0.8, "top_k": 40}, {"temperature": 1.1, "top_p": 0.9},
    {"temperature": 0.7, "top_k": 100, "top_p": 0.95, "min_p": 0.02}, {"temperature": 0, "repetition_penalty": 1.2},
    {"temperature": 0.9, "presence_penalty": 0.4, "frequency_penalty": 0.3, "top_p": 0.8},
    {"temperature": 1.0, "logit_bias": {7: 3.0, 11: -5.0}}, {"temperature": 0, "min_tokens": 4, "stop_token_ids": (5,)},
    {"temperature": 0, "logprobs": 3}, {"temperature": 0.5, "top_p": 0.9, "logprobs": 0},
    {"temperature": 0, "prompt_logprobs": 1},
)  # fmt: skip


@dataclass
class Seen:
    """What happened."""

    added: int = 0
    finished: int = 0
    aborted: int = 0
    steps: int = 0
    tokens: int = 0
    most_running: int = 0
    preemptions: int = 0
    failed: list[str] = field(default_factory=list)  # what should not have happened


def traffic(seconds: float, seed: int) -> dict[str, Any]:
    """Run for that long, then let everything end; 'failed' names what should not have happened."""
    core = random_engine(
        hf_config("tiny"), device="cuda", max_model_len=1024, max_num_seqs=64, max_num_batched_tokens=1024,
        kv_budget_bytes=2 * 22 * 4 * 64 * 2 * 9000,
    )  # fmt: skip
    began = time.perf_counter()
    seen = drive(core, seed, lambda seen: time.perf_counter() - began < seconds, longest=(500, 200))
    return {**vars(seen), "wall_s": time.perf_counter() - began}


def drive(
    core: EngineCore, seed: int, go_on: Callable[[Seen], bool], longest: tuple[int, int], at_once: int = 150
) -> Seen:
    """Let requests arrive while `go_on` says so, then let everything end.

    Args:
        core: with blocks for fewer sequences than rows.
        longest: tokens of the longest prompt, without the shared prefix, and of the longest output.
        at_once: most requests in the engine.
    """
    rng = np.random.default_rng(seed)
    seen = Seen()
    waiting_for: dict[str, tuple[int, int]] = {}  # request -> (tokens so far, tokens due)
    shared = rng.integers(5, core.vocab_size, max(1, 2 * longest[0] // 5)).tolist()
    arriving = True
    while arriving or core.has_work:
        arriving = arriving and go_on(seen)
        if arriving and len(waiting_for) < at_once:
            for _ in range(rng.poisson(0.4 if seen.steps // 200 % 2 else 1.5)):
                request = _request(core, rng, seen.added, shared, longest)
                core.add(request)
                waiting_for[request.request_id] = (0, request.sampling.max_tokens)
                seen.added += 1
        if waiting_for and rng.random() < 0.02:
            name = list(waiting_for)[int(rng.integers(len(waiting_for)))]
            core.abort(name)
            del waiting_for[name]
            seen.aborted += 1
        for output in core.step():
            _take_in(output, waiting_for, seen, core.vocab_size)
        core.check()
        seen.steps += 1
        seen.most_running = max(seen.most_running, core.kv_usage()["running"])
    seen.preemptions = int(core.counters()["preemptions"])
    if waiting_for:
        seen.failed.append(f"{len(waiting_for)} requests never ended")
    if core.kv_usage()["kv_reserved_tokens"]:
        seen.failed.append("blocks are still owned after the last request")
    if not seen.preemptions:
        seen.failed.append("nobody was preempted: too little traffic to mean anything")
    return seen


def _take_in(output: TokenOutput, waiting_for: dict[str, tuple[int, int]], seen: Seen, vocab: int) -> None:
    name = output.request_id
    if name not in waiting_for:
        seen.failed.append(f"{name}: output after its end")
        return
    got, due = waiting_for[name]
    got += len(output.token_ids)
    seen.tokens += len(output.token_ids)
    if any(not 0 <= t < vocab for t in output.token_ids):
        seen.failed.append(f"{name}: a token outside the vocabulary")
    waiting_for[name] = (got, due)
    if output.finish_reason is not None:
        if got != due and output.finish_reason is not FinishReason.STOP:
            seen.failed.append(f"{name}: {got} tokens of {due}, {output.finish_reason}")
        del waiting_for[name]
        seen.finished += 1


def _request(
    core: EngineCore, rng: np.random.Generator, number: int, shared: list[int], longest: tuple[int, int]
) -> Request:
    own = rng.integers(5, core.vocab_size, int(rng.integers(1, longest[0]))).tolist()
    prompt = shared + own if number % 3 == 0 else own
    kind = dict(_KINDS[int(rng.integers(len(_KINDS)))])
    if rng.random() < 0.5:
        kind["seed"] = int(rng.integers(2**62))
    sampling = SamplingParams(max_tokens=int(rng.integers(5, longest[1])), ignore_eos=True, **kind)
    return Request(f"r{number}", tuple(prompt), sampling, time.perf_counter())


def out_of_memory() -> dict[str, Any]:
    """Prompts whose logits are all wanted, with next to no memory left: the same answers, in smaller steps."""
    core = random_engine(
        hf_config("tiny"), device="cuda", max_model_len=2048, max_num_seqs=8, max_num_batched_tokens=4096,
        prefix_caching=False, kv_budget_bytes=2 * 22 * 4 * 64 * 2 * 20000,
    )  # fmt: skip
    rng = np.random.default_rng(3)
    prompts = rng.integers(5, core.vocab_size, (6, 1500)).tolist()
    sampling = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, prompt_logprobs=0)

    def answers() -> list[list[float]]:
        given: dict[str, list[float]] = {}
        for i, prompt in enumerate(prompts):
            core.add(Request(f"{i}", tuple(prompt), sampling, time.perf_counter()))
        while core.has_work:
            for output in core.step():
                given.setdefault(output.request_id, []).extend(
                    p.logprob for p in output.prompt_logprobs or ()
                )
            core.check()
        return [given[f"{i}"] for i in range(len(prompts))]

    expected = answers()
    before = core.counters()["preemptions"]
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    left = 300 << 20
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + left) / total)
    tight = answers()
    torch.cuda.set_per_process_memory_fraction(1.0)
    preempted = core.counters()["preemptions"] - before
    worst = max(
        abs(a - b)
        for one, other in zip(tight, expected, strict=True)
        for a, b in zip(one, other, strict=False)
    )
    failed = []
    if not preempted:
        failed.append("memory never ran out: nothing was tested")
    if [len(one) for one in tight] != [len(one) for one in expected]:
        failed.append("log-probabilities are missing, or there twice")
    if worst > 0.2:
        failed.append(f"log-probabilities differ by {worst:.2g}")
    return {"preemptions": preempted, "worst": worst, "left_bytes": left, "failed": failed}
