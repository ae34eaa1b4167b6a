"""Seconds of whole cases through the engine, and where the time of a step goes."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.random_model import random_engine
from benchmarks.gpu.shapes import Case, Ceilings, floor_s, hf_config
from inferoptim.config import SamplingParams
from inferoptim.engine.core import EngineCore
from inferoptim.engine.request import Request
from inferoptim.units import GIB

_QUANTIZATION = {"bf16": "none", "fp8": "fp8", "int8": "int8"}
_KV_GIB = {"tiny": 16, "8b": 50}
LONG = 500_000  # tokens from which one run of a case is enough: it lasts, and its parts average out


def engine(model: str, precision: str, max_num_seqs: int, **fields: Any) -> EngineCore:
    """The engine as the cases want it; `precision` is 'bf16', 'fp8', 'int8', each also with '+kv8'."""
    kind, _, kv = precision.partition("+")
    settings: dict[str, Any] = {
        "device": "cuda", "max_model_len": 2304, "max_num_seqs": max_num_seqs, "max_num_batched_tokens": 16384,
        "kv_budget_bytes": _KV_GIB[model] * GIB, "prefix_caching": False, "quantization": _QUANTIZATION[kind],
        "kv_quantization": "fp8" if kv else "none",
    }  # fmt: skip
    return random_engine(hf_config(model), **{**settings, **fields})


def requests(core: EngineCore, case: Case, rng: np.random.Generator) -> list[Request]:
    """A case's requests: random tokens, exact lengths."""
    sampling = SamplingParams(temperature=0, max_tokens=case.n_out, ignore_eos=True)
    prompts = rng.integers(5, core.spec.vocab_size, (case.requests, case.n_in)).tolist()
    now = time.perf_counter()
    return [Request(f"{now}/{i}", tuple(prompt), sampling, now) for i, prompt in enumerate(prompts)]


def run_once(core: EngineCore, case: Case, rng: np.random.Generator) -> float:
    """Seconds from the first request handed over to the last token given out."""
    asked = requests(core, case, rng)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for request in asked:
        core.add(request)
    tokens = 0
    while core.has_work:
        for output in core.step():
            tokens += len(output.token_ids)
    seconds = time.perf_counter() - began
    assert tokens == case.requests * case.n_out, f"{tokens} tokens of {case.requests * case.n_out}"
    return seconds


def measure(
    model: str,
    precision: str,
    cases: list[Case],
    repeats: int,
    ceilings: Ceilings,
    profile: bool,
    **fields: Any,
) -> dict[str, Any]:
    """Every case's times with one engine, warm; seconds, and the floor beside them."""
    began = time.perf_counter()
    core = engine(model, precision, max(case.requests for case in cases), **fields)
    rng = np.random.default_rng(1)
    result: dict[str, Any] = {
        "model": model, "precision": precision, "load_s": core.load_s, "start_s": time.perf_counter() - began,
        "card": torch.cuda.get_device_name(), "torch": torch.__version__, "engine": core.info(), "cases": {},
        "settings": fields,
    }  # fmt: skip
    for case in cases:
        tokens = case.requests * (case.n_in + case.n_out)
        count = 1 if tokens >= LONG else max(3, repeats // 2) if tokens >= 100_000 else repeats
        warm = 0 if tokens >= LONG else 2 if case.requests == 1 else 1
        for _ in range(warm):
            run_once(core, case, rng)
        times = [run_once(core, case, rng) for _ in range(count)]
        floor, step_floor = floor_s(model, precision, case, ceilings)
        median = statistics.median(times)
        result["cases"][str(case)] = {
            "times_s": times, "median_s": median, "floor_s": floor, "share_of_floor": floor / median,
            "output_tokens_per_s": case.requests * case.n_out / median, "step_floor_us": step_floor * 1e6,
            "step_us": step_us(core, case, rng) if case.n_out > 1 and tokens < LONG else None,
        }  # fmt: skip
        if profile and tokens < LONG:
            result["cases"][str(case)]["kernels"] = kernels(core, case, rng)
        print(f"{model} {precision} {case}: {median:.4f} s ({min(times):.4f}-{max(times):.4f})", flush=True)
    result["peak_bytes"] = torch.cuda.max_memory_allocated()
    return result


def step_us(core: EngineCore, case: Case, rng: np.random.Generator) -> float:
    """Device time of one decode step in the middle of a case, gaps between steps included."""
    for request in requests(core, case, rng):
        core.add(request)
    spans: list[float] = []
    while core.has_work:
        before = core.counters()
        core.step()
        after = core.counters()
        tokens = after["scheduled_tokens"] - before["scheduled_tokens"]
        if tokens and tokens % case.requests == 0 and tokens <= 16 * case.requests:
            spans.append(core._runner._seconds_per_step)  # type: ignore[attr-defined]
    return statistics.median(spans[len(spans) // 4 :]) * 1e6 if spans else float("nan")


def kernels(core: EngineCore, case: Case, rng: np.random.Generator) -> dict[str, Any]:
    """Device microseconds by kernel, of the prompts' steps and of one decode step."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    for request in requests(core, case, rng):
        core.add(request)
    out: dict[str, Any] = {}
    for phase in ("prompts", "decode"):
        if not core.has_work:
            break
        steps = 0
        with profiler(activities=[ProfilerActivity.CUDA]) as seen:
            for _ in range(200):
                if not core.has_work:
                    break
                plan_steps = core._launched[0].plan.num_steps if core._launched else 1
                core.step()
                steps += plan_steps
                generated = [s.num_generated for s in core._running.values()]
                if phase == "prompts" and generated and min(generated) >= 1:
                    break
                if phase == "decode" and steps >= 24:
                    break
            torch.cuda.synchronize()
        rows = sorted(
            ((e.key[:60], e.device_time_total, e.count) for e in seen.key_averages() if e.device_time_total),
            key=lambda r: -r[1],
        )
        embeds = sum(n for key, _, n in rows if key.startswith("_embed"))  # one a step
        out[phase] = {
            "steps": embeds,
            "us_per_step": sum(r[1] for r in rows) / max(embeds, 1),
            "kernels": [(key, us / max(embeds, 1), n / max(embeds, 1)) for key, us, n in rows[:16]],
        }
        print(f"{case} {phase}: {out[phase]['us_per_step']:.0f} us of kernels a step, {embeds} steps")
        for key, us, n in out[phase]["kernels"]:
            print(f"   {us:9.1f} us {n:7.1f} x  {key}")
    while core.has_work:
        core.step()
    return out
