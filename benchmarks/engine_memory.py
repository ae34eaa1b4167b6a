"""Resident memory of the engine outside its weights, its KV-cache and torch itself. Bar: at most 300 MB.

    python benchmarks/engine_memory.py [--model smollm2-135m] [--quantization int8] [--kernels torch]

Runs in a fresh process: 32 requests at once, prompts of 100 tokens, answers of 50. Of the KV budget only the pages that were
written are resident, so only those are taken off. `torch_alone` is what `import torch` and one product take.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

BAR_BYTES = 300e6


def resident() -> int:
    """Bytes of this process that are in memory now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(options: dict[str, object]) -> dict[str, float]:
    """Load, serve 32 requests, and take the memory apart."""
    import torch

    torch.ones(8) @ torch.ones(8)
    with_torch = resident()
    from inferoptim import LLM, SamplingParams

    llm = LLM(
        max_num_seqs=32, kv_budget_bytes=512 * 2**20, max_model_len=512, prefix_caching=False, **options
    )
    loaded = resident()
    prompts = [[(7 * i + j) % 4000 + 20 for j in range(100)] for i in range(32)]
    peak, tokens = loaded, 0
    states = [llm._state(p, SamplingParams(temperature=0, max_tokens=50, ignore_eos=True)) for p in prompts]
    for _ in llm._run(states):
        peak = max(peak, resident())
        tokens = max(tokens, llm.core.kv_usage()["kv_reserved_tokens"])
    info = llm.core.info()
    kv_written = tokens * info["kv_bytes_per_token"]
    return {
        "torch_alone": with_torch,
        "weights": info["weight_bytes"],
        "kv_written": kv_written,
        "kv_budget": info["kv_capacity_bytes"],
        "after_load": loaded,
        "peak": peak,
        "torch_and_overhead": peak - info["weight_bytes"] - kv_written,
        "overhead": peak - with_torch - info["weight_bytes"] - kv_written,
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
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = vars(parser.parse_args())
    if options.pop("child"):
        print(json.dumps(measure(options)))
        return
    child = subprocess.run([sys.executable, *sys.argv, "--child"], stdout=subprocess.PIPE, check=True)
    account = json.loads(child.stdout.splitlines()[-1])
    for name, size in account.items():
        print(f"{name:24}{size / 1e6:9.1f} MB")
    verdict = "within" if account["overhead"] <= BAR_BYTES else "ABOVE"
    print(f"{verdict} the bar of {BAR_BYTES / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
