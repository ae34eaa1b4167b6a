"""The guide's own work, TinyLlama-1.1B at 100+200: transformers and this engine in one run, with memory and energy."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.shapes import Case, hf_config
from benchmarks.gpu.speed import engine, run_once
from inferoptim.errors import UnsupportedError
from inferoptim.hardware.gpu_meter import GpuMeter

CASES = (Case(1, 100, 200), Case(32, 100, 200))
OFF: dict[str, Any] = {
    "compiled_step": False, "in_flight_batching": False, "paged_kv": False, "prefix_caching": False, "chunked_prefill": False,
}  # fmt: skip
# (who, requests, warm-ups, measured runs): what takes seconds a run gets fewer, and the table says how many
SIDES = (
    ("transformers", 1, 1, 5), ("transformers, static", 1, 5, 50), ("off", 1, 2, 10), ("bf16", 1, 5, 50), ("fp8", 1, 5, 50),
    ("transformers", 32, 1, 4), ("off", 32, 1, 5), ("bf16", 32, 5, 50), ("fp8", 32, 5, 50),
)  # fmt: skip


def side(who: str, requests: int, warm: int, repeats: int) -> dict[str, Any]:
    """One row of the table."""
    case = Case(requests, 100, 200)
    if who.startswith("transformers"):
        return transformers_side(case, warm, repeats, who.endswith("static"))
    return engine_side(case, "bf16" if who == "off" else who, warm, repeats, who != "off")


@cache
def _meter() -> GpuMeter:
    return GpuMeter(str(torch.cuda.get_device_properties(0).uuid))


def held_bytes() -> int | None:
    """What this process holds of the card, its libraries included; None where the driver does not tell."""
    return _meter().read({os.getpid()}).process_memory_bytes


def energy_j() -> float:
    """The card's energy since the first call."""
    joules = _meter().energy_j()
    if joules is None:
        raise UnsupportedError("this card has no energy counter")
    return joules


def timed(run: Callable[[], object], warm: int, repeats: int, tokens: int) -> dict[str, Any]:
    """Times of `repeats` runs after `warm` others; energy and power over all of them."""
    for _ in range(warm):
        run()
    torch.cuda.synchronize()
    began, before, times = time.perf_counter(), energy_j(), []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    joules, seconds = energy_j() - before, time.perf_counter() - began
    return {
        "median_s": statistics.median(times), "min_s": min(times), "max_s": max(times), "runs": repeats, "warm_up": warm,
        "output_tokens_per_s": tokens / statistics.median(times), "power_w": joules / seconds,
        "energy_mj_per_output_token": joules / repeats / tokens * 1e3, "held_bytes": held_bytes(), "times_s": times,
        "peak_bytes": torch.cuda.max_memory_allocated(),
    }  # fmt: skip


def transformers_side(case: Case, warm: int, repeats: int, static: bool) -> dict[str, Any]:
    """Transformers' generate() in bf16, scaled-dot-product attention.

    Args:
        static: a static cache, with which generate() compiles the decoding; else its dynamic cache, as most people run it.
    """
    import transformers

    config = transformers.LlamaConfig(**{k: v for k, v in hf_config("tiny").items() if k != "architectures"})
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = transformers.LlamaForCausalLM(config).eval()
        torch.set_default_dtype(torch.float32)
    ids = torch.randint(5, 32000, (case.requests, case.n_in), device="cuda")
    fixed: dict[str, Any] = {
        "max_new_tokens": case.n_out,
        "min_new_tokens": case.n_out,
        "do_sample": False,
        "pad_token_id": 0,
    }
    if static:
        fixed["cache_implementation"] = "static"

    @torch.inference_mode()
    def run() -> None:
        out = model.generate(ids, attention_mask=torch.ones_like(ids), **fixed)
        assert out.shape[1] == case.n_in + case.n_out

    began = time.perf_counter()
    run()
    first_s = time.perf_counter() - began
    seen = timed(run, max(warm - 1, 0), repeats, case.requests * case.n_out)
    return {"version": transformers.__version__, "first_run_s": first_s, "warm_up": warm, **seen}


def engine_side(case: Case, precision: str, warm: int, repeats: int, levers: bool) -> dict[str, Any]:
    """This engine with memory for exactly this work; `levers` False: every lever off, the kernels launched one by one."""
    core = engine(
        "tiny",
        precision,
        case.requests,
        max_model_len=case.n_in + case.n_out + 16,
        max_num_batched_tokens=4096,
        **({} if levers else OFF),
    )
    rng = np.random.default_rng(3)
    return timed(lambda: run_once(core, case, rng), warm, repeats, case.requests * case.n_out)
