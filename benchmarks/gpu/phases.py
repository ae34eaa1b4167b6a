"""The phases of `python -m benchmarks.gpu` beside parity and speed: each runs its parts in fresh processes and prints what it saw."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.gpu.worker import LIMIT

LIMIT_S = 240.0
_SANITIZERS = 6  # at once: they share ten ports, and one that finds none waits for ever
TUNE_S = 100.0  # the budget of the tuner's search
Keep = Callable[[str, dict[str, Any]], None]  # (part, result): stores it at once


def run_job(
    job: dict[str, Any], limit_s: float, quiet: bool = False, under: tuple[str, ...] = ()
) -> dict[str, Any]:
    """One job in a fresh process, started by the command `under`; its result, or {'error': why}.

    What it started ends with it. Under a command, 'status' and the end of its 'output' are there, too.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked, given, log = (Path(folder) / name for name in ("job.json", "result.json", "log"))
        asked.write_text(json.dumps(job))
        command = [*under, sys.executable, "-m", "benchmarks.gpu.worker", str(asked), str(given)]
        with log.open("wb") as output:
            to = output if quiet else None
            process = subprocess.Popen(
                command, stdout=to, stderr=to, start_new_session=True, env={**os.environ, LIMIT: str(limit_s)}
            )
            try:
                failed = f"exit status {process.wait(limit_s)}"
            except subprocess.TimeoutExpired:
                failed = f"no result within {limit_s:.0f} s"
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        result: dict[str, Any] = json.loads(given.read_text()) if given.exists() else {"error": failed}
        if quiet and "error" in result:
            result["error"] += "\n" + log.read_text(errors="replace")[-2500:]
        if under:
            result.update(status=process.returncode, output=log.read_text(errors="replace")[-2500:])
        return result


def call(module: str, function: str, limit_s: float = LIMIT_S, **arguments: Any) -> dict[str, Any]:
    """A function of a module of this package, in a fresh process."""
    return run_job(
        {"kind": "call", "module": module, "function": function, "arguments": arguments}, limit_s, quiet=True
    )


def beside(args: argparse.Namespace, keep: Keep) -> None:
    """Transformers and this engine on the guide's work, one process each, one after the other."""
    from benchmarks.gpu.beside import SIDES

    for who, requests, warm, repeats in SIDES:
        name = f"{requests}x100+200 {who}"
        seen = call("beside", "side", who=who, requests=requests, warm=warm, repeats=repeats)
        keep(name, seen)
        if "error" in seen:
            print(f"{name}: {seen['error']}", flush=True)
            continue
        print(
            f"{name:<32} {seen['median_s']:.4f} s ({seen['min_s']:.4f}-{seen['max_s']:.4f}, {seen['runs']} runs), "
            f"{seen['output_tokens_per_s']:.0f} tok/s, held {gigabytes(seen['held_bytes'])} (tensors {seen['peak_bytes'] / 1e9:.2f}), "
            f"{seen['power_w']:.0f} W, {seen['energy_mj_per_output_token']:.1f} mJ/token",
            flush=True,
        )


def gigabytes(value: float | None) -> str:
    """Bytes for a person."""
    return "not measured" if value is None else f"{value / 1e9:.2f} GB"


def start(args: argparse.Namespace, keep: Keep) -> None:
    """From command to first token, weights on disk."""
    with tempfile.TemporaryDirectory() as folder:
        written = call("start", "write_model", where=folder)
        if "error" in written:
            print(f"start: {written['error']}")
            return
        seen = call("start", "cold", where=folder, repeats=2)
    keep("starts", seen)
    if "error" in seen:
        print(f"start: {seen['error']}")
    for run in seen.get("result", []):
        print(
            f"start, compiled kernels {run['kernels']}: first token after {run['first_token_s']:.2f} s "
            f"(imports {run['imports_s']:.2f}, load {run['load_s']:.2f}, prompt {run['prompt_s']:.2f})"
        )


def real(args: argparse.Namespace, keep: Keep) -> None:
    """A real model: tokens against transformers, and what each format costs in quality. Nothing is timed, so side by side."""
    from benchmarks.gpu.real import SIDES

    with tempfile.TemporaryDirectory() as folder:
        known = call("real", "reference", model=args.model, folder=folder)
        if "error" in known:
            print(f"real: {known['error']}")
            return
        with ThreadPoolExecutor(args.workers) as pool:
            jobs = pool.map(
                lambda side: call("real", "engine_side", model=args.model, folder=folder, side=side), SIDES
            )
            results = dict(zip(SIDES, jobs, strict=True))
        keep("sides", results)
        judged = call("real", "judge_answers", model=args.model, folder=folder)
        keep("judged", judged)
    print(
        "                  perplexity ratio          KL, nats   top-1   logit error  gate   transformers' own choice, worst gap"
    )
    for side, seen in results.items():
        if "error" in seen:
            print(f"{side:<17} {seen['error']}")
            continue
        values = seen["quality"]["values"]
        ratio, kl, top = (values[n] for n in ("perplexity_ratio", "kl_nats", "top1_agreement"))
        said = judged.get(side)
        note = "not judged"
        if said is not None:
            note = (
                f"{said['own_choice']:.1%} of {said['tokens']}, {said['worst_gap']:.3g}; "
                f"{said['identical_answers']} of {said['answers']} answers identical"
            )
        print(
            f"{side:<17} {ratio['value']:.4f} ({ratio['low']:.4f}-{ratio['high']:.4f})  {kl['value']:.5f}    {top['value']:.3f}   "
            f"{seen['logit_error']:.4f}     {'passes' if seen['quality']['passed'] else 'FAILS '} {note}"
        )
    if "error" in judged:
        print(f"judge: {judged['error']}")


def speculation(args: argparse.Namespace, keep: Keep) -> None:
    """Speculation at one request and in batches, real text."""
    from benchmarks.gpu.speculation import SIDES

    seen = call(
        "speculation", "measure", model=args.model, batches=[1, 8, 32, 128], repeats=3, sides=list(SIDES)
    )
    keep("sides", seen)
    if "error" in seen:
        print(f"speculation: {seen['error']}")
        return
    for side, by_batch in seen.items():
        for batch, row in by_batch.items():
            print(
                f"{side:<18} {batch:>4} requests: {row['seconds']:.3f} s, x{row['ratio']:.2f}, {row['output_tokens_per_s']:.0f} tok/s, "
                f"proposed {row['draft_proposed_tokens']:.0f}, accepted {row['draft_accepted_tokens']:.0f}, "
                f"{row['identical_answers']} of {row['answers']} answers identical"
            )


def vllm(args: argparse.Namespace, keep: Keep) -> None:
    """vLLM on the same cases, where it is importable; and artefacts of `inferoptim build` in it."""
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        print("vllm: not importable here, so not measured")
        return
    if find_spec("flashinfer") is None:  # a dependency of vLLM's that it also runs without, when told
        os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(max(len(args.artefact), 1)) as pool:
        call("start", "write_model", where=folder)
        # loaded while vLLM compiles for the first precision: its start is then not a figure
        tried = [
            pool.submit(call, "peer", "artefact", folder=str(path), prompts=4, tokens=16)
            for path in args.artefact
        ]
        for number, precision in enumerate(args.precisions.split(",")):
            seen = call(
                "peer", "measure", limit_s=args.limit_s, folder=folder, model="tiny", precision=precision,
                cases=args.cases.split(","), repeats=args.repeats, asked_at=time.time(), streamed=[],
            )  # fmt: skip
            if number == 0 and tried:
                seen.pop("start_to_first_token_s", None)
            keep(precision, seen)
            print(f"vllm {precision}: {_short(seen)}", flush=True)
        for path, outcome in zip(args.artefact, tried, strict=True):
            keep(path.name, outcome.result())
            print(f"vllm, {path.name}: {_short(outcome.result())}", flush=True)


def tune(args: argparse.Namespace, keep: Keep) -> bool:
    """The build's tuner on the real model, from nothing and within a budget."""
    seen = call("tune", "search", limit_s=TUNE_S + LIMIT_S, model=args.model, budget_s=TUNE_S)
    keep("search", seen)
    if "error" in seen:
        print(f"FAIL tune: {seen['error']}")
        return False
    print(
        f"tune: {seen['steps']} {seen['runs']}, {seen['spent_s']:.0f} s of {TUNE_S:.0f}, the second time {seen['again_s']} s"
    )
    for trial in seen["trials"]:
        print(f"  {trial}")
    print(
        f"{'FAIL' if seen['failed'] else 'ok  '} tune keeps {seen['settings'] or 'the defaults'} {seen['failed']}"
    )
    return not seen["failed"]


def traffic(args: argparse.Namespace, keep: Keep) -> bool:
    """Random traffic, and steps without memory."""
    parts: dict[str, dict[str, Any]] = {
        "traffic": {"seconds": args.seconds, "seed": int(time.time())}, "out_of_memory": {},
    }  # fmt: skip
    good = True
    for name, arguments in parts.items():
        seen = call("traffic", name, limit_s=args.seconds + LIMIT_S, **arguments)
        keep(name, seen)
        ok = "error" not in seen and not seen["failed"]
        good &= ok
        told = {k: v for k, v in seen.items() if k not in ("error", "failed")}
        print(
            f"{'ok  ' if ok else 'FAIL'} {name}: {told} {seen.get('error', seen.get('failed'))}", flush=True
        )
    return good


def serve(args: argparse.Namespace, keep: Keep) -> bool:
    """`inferoptim serve` as a process: speed over HTTP, and whether its metrics are true."""
    fields = {name: value for name, _, value in (pair.partition("=") for pair in args.set)}
    with tempfile.TemporaryDirectory() as folder:
        where = args.model
        if not Path(where).exists():  # nothing is downloaded: random weights, of TinyLlama's shape
            where = folder
            call("start", "write_model", where=folder)
        seen = call("serve", "measure", where=where, fields=fields)
        keep("served", seen)
        print(_served(seen), flush=True)
        beside = call(
            "serve", "in_process", where=where, fields={k: json.loads(v) for k, v in fields.items()}
        )
        keep("in_process", beside)
    if "error" in beside:
        print(f"in process: {beside['error']}")
    else:
        ratio = seen.get("output_tokens_per_s", float("nan")) / beside["output_tokens_per_s"]
        print(
            f"in process: {beside['output_tokens_per_s']:.0f} tok/s; over HTTP {ratio:.1%} of that",
            flush=True,
        )
    return "error" not in seen and not seen["failed"]


def _served(seen: dict[str, Any]) -> str:
    if "error" in seen:
        return f"FAIL serve: {seen['error']}"
    lines = [
        f"{'FAIL' if seen['failed'] else 'ok  '} serve {seen['case']}: {seen['output_tokens_per_s']:.0f} tok/s over HTTP, "
        f"{seen['tokens_per_event']:.1f} tokens an event; first token {seen['ttft_s'] * 1e3:.1f} ms, alone "
        f"{seen['ttft_alone_s'] * 1e3:.1f} ms; gap {seen['gap_p50_s'] * 1e3:.2f} ms, P99 {seen['gap_p99_s'] * 1e3:.2f}; "
        f"ready after {seen['start_s']:.1f} s, stopped in {seen['stop_s']:.1f} s with status {seen['exit_status']}"
    ]
    for moment in ("busy", "after"):
        found = ", ".join(f"{name} {value:.6g}" for name, value in seen[f"metrics_{moment}"].items())
        lines.append(f"     {moment}: {found}")
    return "\n".join(lines + [f"       {problem}" for problem in seen["failed"]])


def sanitizer(args: argparse.Namespace, keep: Keep) -> bool:
    """The kernels' checks on small shapes under compute-sanitizer, both tools and all checks at once."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        print("FAIL compute-sanitizer is not installed here (it comes with the CUDA toolkit)")
        return False
    from inferoptim.kernels.triton.selfcheck import CHECKS

    job = {"kind": "kernels", "dtype": "bfloat16", "seed": 0, "small": True}
    asked = [(which, check) for which in ("memcheck", "racecheck") for check in CHECKS]

    def run(pair: tuple[str, str]) -> dict[str, Any]:
        # what cuda-bindings looks for in vain in an older driver is no error of ours; a call of ours that fails raises
        under = (
            tool, "--tool", pair[0], "--target-processes", "application-only", "--error-exitcode", "9", "--report-api-errors", "no",
        )  # fmt: skip
        return run_job({**job, "check": pair[1]}, args.limit_s, quiet=True, under=under)

    good = True
    with ThreadPoolExecutor(_SANITIZERS) as pool:
        for pair, seen in zip(asked, pool.map(run, asked), strict=True):
            keep(" ".join(pair), seen)
            ok = seen["status"] == 0 and "error" not in seen and not seen["failed"]
            good &= ok
            summary = [line for line in seen["output"].splitlines() if "SUMMARY" in line]
            print(
                f"{'ok  ' if ok else 'FAIL'} {' '.join(pair)}: {seen.get('error', seen.get('checked'))} {summary}"
            )
    return good


def _short(result: dict[str, Any]) -> str:
    if "cases" not in result:
        return str(result.get("error", result))
    rows = (
        f"{case} {seen['median_s']:.4f} s ({min(seen['times_s']):.4f}-{max(seen['times_s']):.4f}), "
        f"{seen['output_tokens_per_s']:.0f} tok/s, {seen['energy_mj_per_output_token']:.1f} mJ/token"
        for case, seen in result["cases"].items()
    )
    start_s = result.get("start_to_first_token_s")
    began = "start not measured" if start_s is None else f"start to first token {start_s:.1f} s"
    return f"{result['version']}, {began}; " + "; ".join(rows)


# a phase that found something wrong returns False
PHASES: dict[str, Callable[[argparse.Namespace, Keep], bool | None]] = {
    "start": start, "beside": beside, "real": real, "speculation": speculation, "vllm": vllm, "tune": tune, "traffic": traffic,
    "sanitizer": sanitizer, "serve": serve,
}  # fmt: skip
