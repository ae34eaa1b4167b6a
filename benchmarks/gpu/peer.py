"""vLLM on the yardstick's cases, through the bench's own target: same shapes, random prompts, exact lengths."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.beside import energy_j
from benchmarks.gpu.shapes import CONFIGS, Case
from inferoptim.config import SamplingParams
from inferoptim.targets.base import TargetRequest
from inferoptim.targets.vllm import VllmTarget

_LIKELIEST = 20  # tokens whose log-probabilities are compared; the most that vLLM gives unless told otherwise


def measure(
    folder: str,
    model: str,
    precision: str,
    cases: list[str],
    repeats: int,
    asked_at: float,
    streamed: list[str],
) -> dict[str, Any]:
    """Seconds of each case, and from the parent's command (`asked_at`, time.time()) to the first token.

    Args:
        folder: with the weights.
        streamed: cases that are also run with a time for every token, as a server has to.
    """
    rng = np.random.default_rng(1)
    parsed = [Case.parse(case) for case in cases]
    kind, _, kv = precision.partition("+")
    target = VllmTarget(
        {
            "model": folder, "dtype": "bfloat16", "max_model_len": 2304, "max_num_seqs": 512, "prefix_caching": False,
            "quantization": "none" if kind == "bf16" else kind, "kv_quantization": "fp8" if kv else "none",
            "gpu_memory_utilization": 0.85, "stream": False,
        }
    )  # fmt: skip
    info = target.load()
    target.run(_requests(Case(1, 100, 1), model, rng))
    out: dict[str, Any] = {
        "version": info.version, "start_to_first_token_s": time.time() - asked_at, "load_s": info.load_s, "cases": {},
    }  # fmt: skip
    for case in parsed:
        for _ in range(2 if case.requests == 1 else 1):
            target.run(_requests(case, model, rng))
        before, times = energy_j(), []
        for _ in range(max(2, repeats // 2) if case.requests > 256 else repeats):
            times.append(_seconds(target, _requests(case, model, rng), case))
        joules = energy_j() - before
        median = statistics.median(times)
        out["cases"][str(case)] = {
            "times_s": times, "median_s": median, "output_tokens_per_s": case.requests * case.n_out / median,
            "energy_mj_per_output_token": joules / len(times) / (case.requests * case.n_out) * 1e3,
        }  # fmt: skip
        print(f"vllm {precision} {case}: {median:.4f} s ({min(times):.4f}-{max(times):.4f})", flush=True)
    target._options = target._options.model_copy(update={"stream": True})
    for case in map(Case.parse, streamed):
        times = [_seconds(target, _requests(case, model, rng), case) for _ in range(repeats)]
        out["cases"][str(case)]["streamed_s"] = times
    return out


def _requests(case: Case, model: str, rng: np.random.Generator) -> list[TargetRequest]:
    sampling = SamplingParams(max_tokens=case.n_out, temperature=0.0, ignore_eos=True)
    prompts = rng.integers(5, CONFIGS[model]["vocab_size"], (case.requests, case.n_in)).tolist()
    now = time.perf_counter()
    return [TargetRequest(f"{now}/{i}", "", tuple(p), sampling) for i, p in enumerate(prompts)]


def _seconds(target: VllmTarget, requests: list[TargetRequest], case: Case) -> float:
    began = time.perf_counter()
    responses = target.run(requests)
    seconds = time.perf_counter() - began
    tokens = sum(len(r.token_ids) for r in responses)
    assert tokens == case.requests * case.n_out, f"{tokens} tokens of {case.requests * case.n_out}"
    return seconds


def artefact(folder: str, prompts: int, tokens: int) -> dict[str, Any]:
    """An artefact of `inferoptim build` in vLLM and in this engine: greedy tokens, and the log-probabilities of the likeliest.

    vLLM writes the answers; both say how likely each of vLLM's first 20 choices was at every token of them. The two round
    inputs by the same rule (a scale a token) and sum in another order: small differences are right, a misread scale or a
    product taken for a quantised one is not small.

    Args:
        prompts: shipped paragraphs, both languages in turn, 48 tokens of each.
        tokens: of each answer.
    """
    import json

    import vllm

    from inferoptim.bench.corpus import paragraphs
    from inferoptim.config import EngineConfig
    from inferoptim.engine.core import EngineCore
    from inferoptim.models.tokenizer import load_tokenizer

    spec = json.loads((Path(folder) / "config.json").read_text())
    tokenizer = load_tokenizer(Path(folder))
    texts = [text for both in zip(paragraphs("en"), paragraphs("fr"), strict=False) for text in both]
    asked = [tokenizer.encode(text)[:48] for text in texts[:prompts]]
    llm = vllm.LLM(
        model=folder, skip_tokenizer_init=True, enforce_eager=True, max_model_len=128, seed=0,
        kv_cache_memory_bytes=1 << 30,  # a share of the card would count what the others hold
    )  # fmt: skip
    params = vllm.SamplingParams(
        temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False, logprobs=_LIKELIEST
    )
    done = llm.generate([{"prompt_token_ids": p} for p in asked], params, use_tqdm=False)
    core = EngineCore(EngineConfig.create(model=folder, device="cuda", max_model_len=128, max_num_seqs=4))
    differences, chosen, same = [], [], 0
    for prompt, output in zip(asked, (o.outputs[0] for o in done), strict=True):
        answer = list(output.token_ids)
        logits = core.logits([*prompt, *answer])[len(prompt) - 1 : -1].astype(np.float64)
        own = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        same += int((logits.argmax(1) == answer).sum())
        for row, step, token in zip(own, output.logprobs, answer, strict=True):
            off = {i: abs(row[i] - said.logprob) for i, said in step.items()}
            differences += off.values()
            chosen.append(off[token])
    count = prompts * tokens
    return {
        "vllm": vllm.__version__, "quantization": spec.get("quantization_config", {}).get("format"), "tokens": count,
        "our_choice": same / count, "mean_logprob_difference": float(np.mean(chosen)),
        "largest_logprob_difference": float(np.max(chosen)), "likeliest_compared": len(differences),
        "mean_difference_of_the_likeliest": float(np.mean(differences)), "answers": [list(o.outputs[0].token_ids) for o in done],
    }  # fmt: skip
