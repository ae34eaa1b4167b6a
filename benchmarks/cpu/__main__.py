"""Our engine beside its peers on this CPU, in one run: `python -m benchmarks.cpu` (peers: `make peers` first).

Every engine lives in its own process and is asked in turn, in an order drawn anew for each round, so that a machine
that speeds up or slows down does so for all of them. Printed: medians, the ratio of ours to each peer in the same
rounds, and the share of the machine's ceiling. Written: everything, as JSON. The defaults take about eight minutes on
two cores.

ours int8: weights and activations in int8. ours int4: the model's own 4-bit blocks (the default model is a Q4_1 file)
with int8 activations. kv8: with an int8 KV-cache. lookup: with prompt-lookup speculation of up to ten tokens, in the case `summarise` only.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.cpu.cases import Case, make_cases
from benchmarks.cpu.floors import Machine, Weights, floor_s
from benchmarks.cpu.peers import ROOT, Engine, Run, Skipped, start
from inferoptim.hardware import MachineCeilings, ceilings, measure_ceilings
from inferoptim.hardware.cpu import cpu_facts, usable_cores
from inferoptim.models.hub import resolve_model
from inferoptim.models.tokenizer import load_tokenizer

CASES = "decode-1,decode-8,prefill-512,prefill-2000,summarise,decode-32"
ENGINES = (
    "ours int8,ours int8 kv8,ours int4,ours int4 kv8,ours int8 lookup,ours int4 lookup,transformers bf16,"
    "llama.cpp Q8_0,llama.cpp Q4_1,llama.cpp Q4_0,OpenVINO int8"
)
LONG_S = 10.0  # an engine that took longer on a case is asked once


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument(
        "--cases", default=CASES, help="decode-N (N requests, 97 in, 200 out), prefill-T, summarise"
    )
    parser.add_argument("--engines", default=ENGINES, help="comma-separated")
    parser.add_argument("--rounds", type=int, default=2, help="medians are taken over these")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument(
        "--peers", type=Path, default=ROOT / ".venv-peers/bin/python", help="their interpreter"
    )
    parser.add_argument("--out", type=Path, default=None, help="JSON file; default results/cpu-<time>.json")
    args = parser.parse_args()
    names = [name.strip() for name in args.engines.split(",")]
    files = resolve_model(args.model)
    cases = make_cases(load_tokenizer(files.folder), tuple(args.cases.split(",")))
    machine_ceilings = ceilings("cpu", args.threads, remeasure=True)
    skipped: dict[str, str] = {}
    engines: list[Engine] = []
    most = max(case.concurrency for case in cases)
    longest = max(len(case.prompts[0]) + case.output_tokens for case in cases)
    try:
        for name in names:
            try:
                engines.append(start(name, files, args.peers, args.threads, most, longest))
            except Skipped as why:
                skipped[name] = str(why)
                print(f"{name}: skipped ({why})", flush=True)
        record: dict[str, Any] = {
            "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": ["python", "-m", "benchmarks.cpu", *sys.argv[1:]],
            "cpu": cpu_facts().model,
            "isa": cpu_facts().isa,
            "threads": args.threads,
            "ceilings": machine_ceilings.as_record_fields(),
            "engines": {engine.name: engine.info for engine in engines},
            "skipped": skipped,
            "cases": [],
        }
        print_machine(record)
        out = args.out or ROOT / f"results/cpu-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}.json"
        before = _machine(machine_ceilings)
        for case in cases:
            runs = measure(engines, case, args.rounds, skipped)
            after = _machine(
                measure_ceilings("cpu", args.threads)
            )  # a shared host's rates change within minutes
            result = summary(case, runs, engines, before.best_of(after))
            result["reads_bytes_per_s"] = [before.read_bytes_per_s, after.read_bytes_per_s]
            before = after
            record["cases"].append(result)
            print_case(result)
            write(out, record)  # an interrupted run keeps what it has
        print(f"\nWritten: {out}")
    finally:
        for engine in engines:
            engine.close()


def _machine(seen: MachineCeilings) -> Machine:
    return Machine(seen.memory_read_bytes_per_s or 0.0, seen.gemm_flops_per_s.get("int8", 0.0))


def write(out: Path, record: dict[str, Any]) -> None:
    """Aside, then renamed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_suffix(".tmp")
    aside.write_text(json.dumps(record, indent=1, default=str), encoding="utf-8")
    aside.replace(out)


def measure(engines: list[Engine], case: Case, rounds: int, skipped: dict[str, str]) -> dict[str, list[Run]]:
    """Every engine on a case, interleaved; one warm-up each. An engine that failed, or took long, is asked no more."""
    runs: dict[str, list[Run]] = {}
    order = random.Random(case.name)
    warm = replace(
        case, prompts=tuple(p[:64] for p in case.prompts), output_tokens=min(case.output_tokens, 4)
    )
    for round_number in range(-1, rounds):
        for engine in order.sample(engines, len(engines)):
            known = runs.get(engine.name)
            if (
                engine.name in skipped
                or not takes_part(engine.name, case)
                or (known and known[0].total_s > LONG_S)
            ):
                continue
            try:
                run = engine.ask(warm if round_number < 0 else case)
            except Skipped as why:
                skipped[engine.name] = str(why)
                print(f"{engine.name}: given up ({why})", flush=True)
                continue
            if round_number >= 0:
                runs.setdefault(engine.name, []).append(run)
    return runs


def takes_part(name: str, case: Case) -> bool:
    """Speculation is judged where its text repeats itself, against our engine without."""
    if case.is_speculation:
        return name.startswith("ours") and "kv8" not in name
    return "lookup" not in name


def rate(case: Case, run: Run) -> float:
    """What a case is judged by, tokens/s: prompt tokens (prefill), decode speed of one request, or all output tokens
    over the whole time, prompts included."""
    if case.is_prefill:
        return case.prompt_tokens / run.total_s
    if case.concurrency == 1 and run.first_s is not None:
        return len(case.prompts) * (case.output_tokens - 1) / (run.total_s - run.first_s)
    return len(case.prompts) * case.output_tokens / run.total_s


def summary(
    case: Case, runs: dict[str, list[Run]], engines: list[Engine], machine: Machine
) -> dict[str, Any]:
    """Medians, ratios and share of the ceiling of one case."""
    rows = {}
    medians = {name: median(rate(case, run) for run in some) for name, some in runs.items()}
    for engine in engines:
        mine = runs.get(engine.name)
        if not mine:
            continue
        rates = [rate(case, run) for run in mine]
        row: dict[str, Any] = {
            "tokens_per_s": median(rates),
            "rates": rates,
            "total_s": [run.total_s for run in mine],
            "first_s": [run.first_s for run in mine],
        }
        if not engine.name.startswith("ours"):
            row["over_this"] = {
                name: value / medians[engine.name]
                for name, value in medians.items()
                if name.startswith("ours")
            }
        elif "lookup" in engine.name:
            plain = engine.name.replace(" lookup", "")
            if plain in runs:
                row["over_plain"] = medians[engine.name] / medians[plain]
                row["identical"] = all(run.tokens == runs[plain][0].tokens for run in mine)
        else:
            weights = Weights(
                engine.info["body_parameters"],
                engine.info["head_parameters"],
                engine.info["weight_read_bytes"] or engine.info["weight_bytes"],
                engine.info["kv_bytes_per_token"],
            )
            if not case.is_speculation and machine.read_bytes_per_s and machine.int8_ops_per_s:
                row["share_of_ceiling"] = _share(case, mine, weights, machine)
        rows[engine.name] = row
    return {
        "name": case.name,
        "requests": case.concurrency,
        "prompt_tokens": case.prompt_tokens,
        "output_tokens": case.output_tokens,
        "engines": rows,
    }


def _share(case: Case, runs: list[Run], weights: Weights, machine: Machine) -> float:
    """Least possible time over the time taken: of the decode alone for one request, else of the whole case."""
    floor = floor_s(case, weights, machine)
    if case.concurrency == 1 and not case.is_prefill:
        floor -= floor_s(Case(case.name, case.prompts, 1), weights, machine)
        return floor / median(run.total_s - (run.first_s or 0.0) for run in runs)
    return floor / median(run.total_s for run in runs)


def print_machine(record: dict[str, Any]) -> None:
    """One line: the processor and what it reached."""
    ceilings = record["ceilings"]
    read, gemm = ceilings["memory_read_bytes_per_s"], ceilings["gemm_flops_per_s"].get("int8")
    parts = [
        f"{record['cpu']}, {record['threads']} threads",
        f"reads {read / 1e9:.1f} GB/s" if read else "read rate not measured",
        f"int8 products {gemm / 1e12:.2f} TOP/s" if gemm else "int8 rate not measured",
    ]
    print("; ".join(parts), flush=True)


def print_case(case: dict[str, Any]) -> None:
    """What a person reads of a case."""
    many, one_token = case["requests"] > 1, case["output_tokens"] == 1
    unit = "prompt tok/s" if one_token else "tok/s total" if many else "tok/s decode"
    print(
        f"\n{case['name']}: {case['requests']} at once, {case['prompt_tokens']} in, {case['output_tokens']} out each"
        "   (behind a peer: ours over it)"
    )
    print(
        f"  reads before and after it: {' and '.join(f'{r / 1e9:.1f}' for r in case['reads_bytes_per_s'])} GB/s"
    )
    for name, row in case["engines"].items():
        low, high = min(row["rates"]), max(row["rates"])
        line = f"  {name:18s} {row['tokens_per_s']:9.1f} {unit}  ({low:.1f} to {high:.1f}, {len(row['rates'])} runs)"
        if row.get("over_this"):
            ratios = sorted(row["over_this"].items())
            line += "   " + ", ".join(f"{ours.removeprefix('ours ')} ×{value:.2f}" for ours, value in ratios)
        if "over_plain" in row:
            line += f"   ×{row['over_plain']:.2f} of the same without, output {'identical' if row['identical'] else 'DIFFERENT'}"
        if "share_of_ceiling" in row:
            line += f"   {row['share_of_ceiling']:.0%} of the ceiling"
        print(line, flush=True)


if __name__ == "__main__":
    main()
