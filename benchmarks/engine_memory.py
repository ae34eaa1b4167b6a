"""Resident memory of an engine process outside its weights and its KV-cache. Bar: at most 300 MB.

    python benchmarks/engine_memory.py [--model smollm2-135m] [--quantization int8] [--kernels torch]

Runs in a fresh process: 32 requests at once, prompts of 100 tokens, answers of 50. Everything counts but the weights and
the written part of the KV-cache: Python, torch, tokenizer, kernels, buffers. Of the KV budget only pages that were
written are resident, so only those are taken off. `second_embedding` is a part of the weights that is held twice (tied
weights in native kernels: once packed for the output, once for look-ups); the last line counts it as overhead too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

BAR_BYTES = 300e6
UNWANTED = ("transformers", "sympy", "torch._dynamo", "torch._inductor", "scipy", "matplotlib", "polars")


def resident() -> int:
    """Bytes of this process that are in memory now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(options: dict[str, object]) -> dict[str, object]:
    """Load, serve 32 requests, and take the memory apart."""
    import torch

    torch.ones(8) @ torch.ones(8)
    with_torch = resident()
    from inferoptim import LLM, SamplingParams

    llm = LLM(
        max_num_seqs=32, kv_budget_bytes=512 * 2**20, max_model_len=512, prefix_caching=False, **options
    )
    loaded = resident()
    vocab = min(4000, llm.core.vocab_size - 20)
    prompts = [[(7 * i + j) % vocab + 20 for j in range(100)] for i in range(32)]
    peak, tokens = loaded, 0
    states = [llm._state(p, SamplingParams(temperature=0, max_tokens=50, ignore_eos=True)) for p in prompts]
    for _ in llm._run(states):
        peak = max(peak, resident())
        tokens = max(tokens, llm.core.kv_usage()["kv_reserved_tokens"])
    info = llm.core.info()
    spec = llm.core.spec
    twice = info["decoder"] == "FusedDecoder" and spec.tied_embeddings and options["quantization"] == "none"
    second = spec.head_parameters * (4 if info["dtype"] == "float32" else 2) if twice else 0
    kv_written = tokens * info["kv_bytes_per_token"]
    overhead = peak - info["weight_bytes"] - kv_written
    return {
        "torch_alone": with_torch,
        "weights": info["weight_bytes"],
        "kv_written": kv_written,
        "kv_budget": info["kv_capacity_bytes"],
        "after_load": loaded,
        "peak": peak,
        "overhead": overhead,
        "second_embedding": second,
        "overhead_with_it": overhead + second,
        "unwanted_modules": [name for name in UNWANTED if name in sys.modules],
    }


def main() -> None:
    """Measure in a fresh process and print the account."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", action="store_true", help="bytes, as one line of JSON")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = vars(parser.parse_args())
    as_json = options.pop("json")
    if options.pop("child"):
        print(json.dumps(measure(options)))
        return
    child = subprocess.run([sys.executable, *sys.argv, "--child"], stdout=subprocess.PIPE, check=True)
    line = child.stdout.splitlines()[-1]
    if as_json:
        print(line.decode())
        return
    account = json.loads(line)
    for name, size in account.items():
        if not isinstance(size, list):
            print(f"{name:24}{size / 1e6:9.1f} MB")
    print("imported without need:", ", ".join(account["unwanted_modules"]) or "nothing")
    verdict = "within" if account["overhead_with_it"] <= BAR_BYTES else "ABOVE"
    print(f"{verdict} the bar of {BAR_BYTES / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
