"""The server in front of an engine that keeps a GPU's pace without one: `python -m benchmarks.paced_engine`.

A stand-in, for what the HTTP path costs at rates that no model on a CPU reaches. It computes nothing. Its steps take the times
that TinyLlama's took on an H100 (docs/performance.md), and it plans as the engine does there: many decode steps in a plan, the
next plan made ahead, so that a newcomer waits for what is under way. The same stand-in is driven in-process for the ratio.
CPU seconds of server, engine process and client are printed beside: here they share the machine's cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.serving import Server, make_prompts, payloads, run, stream_all
from inferoptim.config import EngineConfig, SamplingParams
from inferoptim.engine.request import Request, TokenOutput
from inferoptim.serving.null_engine import NullCore

_MOST_STEPS, _FIRST_STEPS = 16, 4
_PROMPT_S, _PROMPT_TOKEN_S = 1.5e-3, 3.7e-6  # of a step of prompts
_STEP_S, _STEP_ROW_S = 0.86e-3, 13.5e-6  # of a decode step: 0.87 ms for one row, 1.29 ms for 32


@dataclass(slots=True)
class _Plan:
    rows: list[str]
    steps: int
    ends_s: float
    prompts: bool


class PacedCore(NullCore):
    """An engine core on a clock of its own.

    Args:
        plan_s: how long a plan of decode steps should take.
        arriving_plan_s: the same while requests have lately come.
        arriving_s: how long that is.
    """

    def __init__(
        self, config: EngineConfig, plan_s: float = 8e-3, arriving_plan_s: float = 8e-3, arriving_s: float = 0.0
    ) -> None:  # fmt: skip
        super().__init__(config)
        self._plan_s, self._arriving_plan_s, self._arriving_s = plan_s, arriving_plan_s, arriving_s
        self._out: deque[_Plan] = deque()
        self._free_s = self._latest_s = 0.0
        self._planned: dict[str, int] = {}  # tokens that each request has once all plans are over

    def add(self, request: Request) -> None:
        """Queue a request."""
        super().add(request)
        self._planned[request.request_id] = 0

    def step(self) -> list[TokenOutput]:
        """The tokens of the oldest plan; the one after it is made before they are waited for."""
        if not self._out:
            self._make(time.perf_counter())
        latest, waits = self._out[-1], any(not planned for planned in self._planned.values())
        if len(self._out) == 1 and not latest.prompts and not waits:
            self._make(time.perf_counter())
        plan = self._out.popleft()
        time.sleep(max(0.0, plan.ends_s - time.perf_counter()))
        outputs = []
        self._work = []
        for request_id in plan.rows:
            state = self._running[request_id]
            count = min(plan.steps, state.max_tokens - state.given)
            self._work.append((request_id, state.num_prompt + state.given, count))
            tokens = tuple(self._tokens[(state.given + i) % len(self._tokens)] for i in range(count))
            state.given += count
            outputs.append(TokenOutput(request_id, tokens, self._reason(request_id), 0))
        self._steps += 1
        return outputs

    def _make(self, now_s: float) -> None:
        new = [request_id for request_id, planned in self._planned.items() if not planned]
        if new:
            tokens = sum(self._running[request_id].num_prompt for request_id in new)
            rows, steps, takes_s = new, 1, _PROMPT_S + tokens * _PROMPT_TOKEN_S
            self._latest_s = now_s
        else:
            rows = [r for r, planned in self._planned.items() if planned < self._running[r].max_tokens]
            if not rows:
                return
            step_s = _STEP_S + len(rows) * _STEP_ROW_S
            arriving = now_s - self._latest_s < self._arriving_s
            plan_s = self._arriving_plan_s if arriving else self._plan_s
            steps = int(min(max(plan_s / step_s, 1), _MOST_STEPS)) if self._steps else _FIRST_STEPS
            takes_s = steps * step_s
        for request_id in rows:
            self._planned[request_id] += steps
        self._free_s = max(self._free_s, now_s) + takes_s
        self._out.append(_Plan(rows, steps, self._free_s, bool(new)))

    def _reason(self, request_id: str) -> Any:
        from inferoptim.engine.request import FinishReason

        if self._running[request_id].given < self._running[request_id].max_tokens:
            return None
        del self._running[request_id], self._planned[request_id]
        return FinishReason.LENGTH


def serve(options: dict[str, float]) -> None:
    """`inferoptim serve` with this engine: the command's own way, but for the engine's name."""
    from inferoptim.cli.main import main as command
    from inferoptim.serving import server

    real = server.serve

    def with_paced(settings: Any, config: Any, **fields: Any) -> None:
        real(
            settings,
            config,
            **{**fields, "core": "benchmarks.paced_engine:PacedCore", "core_options": options},
        )

    server.serve = with_paced
    sys.argv = ["inferoptim", "serve", *sys.argv[3:]]
    command()


def in_process(model: str, prompts: list[list[int]], tokens: int, options: dict[str, float]) -> float:
    """Seconds for the same requests without a server."""
    core = PacedCore(EngineConfig.create(model=model, max_num_seqs=256), **options)
    sampling = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
    began = time.perf_counter()
    for number, prompt in enumerate(prompts):
        core.add(Request(str(number), tuple(prompt), sampling, 0.0))
    while core.has_work:
        core.step()
    return time.perf_counter() - began


def cpu_s(pid: int) -> float:
    """CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(
    model: str, requests: int, tokens: int, repeats: int, options: dict[str, float]
) -> dict[str, Any]:
    """Requests at once over HTTP and in-process, in turns."""

    class Paced(Server):
        def __init__(self) -> None:
            import subprocess

            real = subprocess.Popen

            def start(command: list[str], **fields: Any) -> Any:
                at = command.index("serve")
                words = [
                    sys.executable,
                    "-m",
                    "benchmarks.paced_engine",
                    "serve",
                    json.dumps(options),
                    *command[at + 1 :],
                ]
                return real(words, **fields)

            with mock.patch("benchmarks.serving.subprocess.Popen", start):
                super().__init__(model, "-e", "max_num_seqs=256")

    server = Paced()
    engine = int(
        Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()[0]
    )
    pids = {"server": server.process.pid, "engine": engine, "client": os.getpid()}
    served, alone, first, events, cpu = [], [], [], 0, dict.fromkeys(pids, 0.0)
    for turn in range(repeats + 2):  # two warm up
        prompts = make_prompts(requests, turn)
        alone.append(in_process(model, prompts, tokens, options))
        requests_sent = payloads(prompts, tokens)
        before, began = {who: cpu_s(pid) for who, pid in pids.items()}, time.perf_counter()
        results = run(stream_all(server.port, requests_sent, requests))
        served.append(time.perf_counter() - began)
        if turn > 1:
            cpu = {who: cpu[who] + cpu_s(pid) - before[who] for who, pid in pids.items()}
            first += [r.arrivals_s[0] - began for r in results]
            events += sum(r.events for r in results)
    server.stop()
    one, other = statistics.median(served[2:]), statistics.median(alone[2:])
    return {
        "served_s": served[2:], "in_process_s": alone[2:], "served_over_in_process": other / one,
        "first_token_ms": [round(q * 1e3, 1) for q in statistics.quantiles(first, n=10)],
        "tokens_per_event": requests * tokens * repeats / events,
        "cpu_ms_a_turn": {who: round(seconds / repeats * 1e3, 1) for who, seconds in cpu.items()},
    }  # fmt: skip


def main() -> None:
    """Run and print."""
    if sys.argv[1:2] == ["serve"]:
        serve(json.loads(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m", help="whose tokenizer")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=SECONDS", help="of PacedCore")
    args = parser.parse_args()
    options = {name: float(value) for name, _, value in (pair.partition("=") for pair in args.set)}
    print(json.dumps(measure(args.model, args.requests, args.tokens, args.repeats, options), indent=1))


if __name__ == "__main__":
    main()
