"""The guide's own work, TinyLlama-1.1B at 100+200: transformers and this engine in one run, with memory and energy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.shapes import Case, hf_config
from benchmarks.gpu.speed import engine, run_once

CASES = (Case(1, 100, 200), Case(32, 100, 200))


def energy_j() -> float:
    """The card's energy counter. Source: NVML, nvmlDeviceGetTotalEnergyConsumption, in millijoules."""
    import pynvml

    pynvml.nvmlInit()
    uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3


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
        "energy_mj_per_output_token": joules / repeats / tokens * 1e3,
    }  # fmt: skip


def transformers_side(case: Case, warm: int, repeats: int) -> dict[str, Any]:
    """Transformers as most people run it: generate() with its dynamic cache, scaled-dot-product attention, bf16."""
    import transformers

    config = transformers.LlamaConfig(**{k: v for k, v in hf_config("tiny").items() if k != "architectures"})
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = transformers.LlamaForCausalLM(config).eval()
        torch.set_default_dtype(torch.float32)
    ids = torch.randint(5, 32000, (case.requests, case.n_in), device="cuda")
    fixed = {
        "max_new_tokens": case.n_out,
        "min_new_tokens": case.n_out,
        "do_sample": False,
        "pad_token_id": 0,
    }

    @torch.inference_mode()
    def run() -> None:
        out = model.generate(ids, attention_mask=torch.ones_like(ids), **fixed)
        assert out.shape[1] == case.n_in + case.n_out

    seen = timed(run, warm, repeats, case.requests * case.n_out)
    return {"version": transformers.__version__, "peak_bytes": torch.cuda.max_memory_allocated(), **seen}


def engine_side(case: Case, precision: str, warm: int, repeats: int) -> dict[str, Any]:
    """This engine with memory for exactly this work."""
    core = engine(
        "tiny",
        precision,
        case.requests,
        max_model_len=case.n_in + case.n_out + 16,
        max_num_batched_tokens=4096,
    )
    rng = np.random.default_rng(3)
    seen = timed(lambda: run_once(core, case, rng), warm, repeats, case.requests * case.n_out)
    return {"peak_bytes": torch.cuda.max_memory_allocated(), **seen}
