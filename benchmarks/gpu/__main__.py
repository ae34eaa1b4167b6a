"""`python -m benchmarks.gpu`: see the package's docstring."""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu.phases import PHASES, run_job
from benchmarks.gpu.shapes import CASES, NAMES, VLLM_S, Ceilings


def parity(workers: int, agreement: bool, limit_s: float) -> tuple[dict[str, Any], bool]:
    """Kernels against their reference, then the engine against torch operators; side by side, since nothing is timed."""
    from inferoptim.kernels.triton.selfcheck import BFLOAT16_ALONE, CHECKS

    jobs: dict[str, dict[str, Any]] = {
        f"kernels {check} {dtype}": {
            "kind": "kernels",
            "check": check,
            "dtype": dtype,
            "seed": int(time.time()),
        }
        for check in CHECKS
        for dtype in ("bfloat16", "float16")
        if dtype == "bfloat16" or check not in BFLOAT16_ALONE
    }
    if agreement:
        from benchmarks.gpu.agreement import CASES as AGREEMENT

        jobs.update({f"engine {case}": {"kind": "agreement", "case": case} for case in AGREEMENT})
    with ThreadPoolExecutor(workers) as pool:
        results = dict(
            zip(jobs, pool.map(lambda job: run_job(job, limit_s, quiet=True), jobs.values()), strict=True)
        )
    good = True
    for name, result in results.items():
        ok = "error" not in result and not result.get("failed") and result.get("passed", True)
        good &= ok
        if "worst_gap" in result:
            note = (
                f"{result['tokens']} tokens, {result['agree']:.1%} the same, worst gap {result['worst_gap']:.2g}, "
                f"logits differ by {result['logit_error']:.2g}"
            )
        else:
            note = f"{result.get('checked', 0)} comparisons"
        print(f"{'ok  ' if ok else 'FAIL'} {name}: {result.get('error', note)}")
        for line in result.get("failed", [])[:8]:
            print(f"       {line}")
    return results, good


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "model               precision  case             ours s   floor s  of floor   vLLM s*   ratio  tok/s     us/step (floor)"
    ]
    for result in results:
        if "error" in result:
            lines.append(f"{result['job']}: {result['error']}")
            continue
        peers = VLLM_S.get((result["model"], result["precision"]), {})
        for case, seen in result["cases"].items():
            peer = peers.get(case)
            step = (
                f"{seen['step_us']:.0f} ({seen['step_floor_us']:.0f})" if seen["step_us"] else "not measured"
            )
            lines.append(
                f"{NAMES[result['model']]:<19} {result['precision']:<10} {case:<15} {seen['median_s']:8.4f} {seen['floor_s']:9.4f} "
                f"{seen['share_of_floor']:8.0%} {peer or float('nan'):9.4f} {(peer or float('nan')) / seen['median_s']:7.2f} "
                f"{seen['output_tokens_per_s']:8.0f}   {step}"
            )
        lines.append(
            f"   start {result['start_s']:.1f} s, peak {result['peak_bytes'] / 1e9:.1f} GB, {result['settings'] or ''}"
        )
    lines.append("* vLLM 0.25.1, measured 2026-11-23 on the same kind of card, not in this run")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--phases", default="parity,agreement,ceilings,beside,speed", help=f"also {', '.join(PHASES)}"
    )
    parser.add_argument(
        "--model",
        default="smollm2-135m",
        help="the real model of the phases real and speculation; serve takes it where it is a file or folder",
    )
    parser.add_argument(
        "--artefact", type=Path, action="append", default=[], help="an artefact to try in vLLM; repeatable"
    )
    parser.add_argument("--models", default="tiny,8b")
    parser.add_argument("--precisions", default="bf16,fp8", help="bf16, fp8, int8, each also with +kv8")
    parser.add_argument("--cases", default=",".join(map(str, CASES)))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=300, help="how long random traffic lasts")
    parser.add_argument("--profile", action="store_true", help="also print device time by kernel")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=JSON", help="an EngineConfig field"
    )
    parser.add_argument("--workers", type=int, default=10, help="processes that check parity at once")
    parser.add_argument("--limit-s", type=float, default=600)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("benchmarks.gpu: torch sees no NVIDIA GPU here; run `inferoptim doctor`", file=sys.stderr)
        return 1
    phases = args.phases.split(",")
    report: dict[str, Any] = {"argv": sys.argv[1:], "date": time.strftime("%Y-%m-%d"), "speed": []}
    good = True
    began = time.perf_counter()
    if "parity" in phases:
        report["parity"], good = parity(args.workers, "agreement" in phases, args.limit_s)
        print(f"parity: {'ok' if good else 'FAILED'} after {time.perf_counter() - began:.0f} s", flush=True)
    if "ceilings" in phases:
        report["ceilings"] = run_job({"kind": "ceilings"}, 120)
        print(f"ceilings: {report['ceilings']}")
    for name, phase in PHASES.items():
        if name in phases:
            report[name] = {}

            def keep(part: str, result: dict[str, Any], seen: dict[str, Any] = report[name]) -> None:
                seen[part] = (
                    result  # on disk before anything is done with it: machines can be gone in a moment
                )
                if args.out:
                    args.out.write_text(json.dumps(report, indent=1))

            good &= phase(args, keep) is not False
    if "speed" in phases:
        fields = {k: json.loads(v) for k, _, v in (pair.partition("=") for pair in args.set)}
        for model in args.models.split(","):
            for precision in args.precisions.split(","):
                job = {
                    "kind": "speed", "model": model, "precision": precision, "cases": args.cases.split(","),
                    "repeats": args.repeats, "profile": args.profile, "ceilings": asdict(Ceilings()), "fields": fields,
                }  # fmt: skip
                left = args.limit_s - (time.perf_counter() - began)
                result = run_job(job, max(left, 1)) if left > 15 else {"error": "no time left"}
                report["speed"].append({**result, "job": f"{model} {precision}"})
                if args.out:
                    args.out.write_text(json.dumps(report, indent=1))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1))
    if report["speed"]:
        print(table(report["speed"]))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
