"""Soak the server: saturated for a long time, with clients that leave, bodies that are broken and an engine that is killed.

    python benchmarks/soak.py --minutes 30 [--model smollm2-135m] [--json FILE]

What must hold at the end, each printed with its figures; exit status 1 when one does not:
  answered   every request was answered or refused with a reason; none was lost in silence
  blocks     nothing runs, nothing waits, no KV block is held once the load is gone
  tasks      the server has as many asyncio tasks as before the load
  files      the server has as many open files as before the load
  memory     resident memory of the server and of each engine process is flat (the last fifth against the fifth after warm-up)
  engine     the killed engine came back, and requests in flight were told so
  stop       SIGTERM ends the server with status 0
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from inferoptim.config import SamplingParams
from inferoptim.targets.http_client import Endpoint, HttpClient, TransportError
from inferoptim.targets.openai_client import OpenAIClient
from inferoptim.targets.openai_stream import Call

BROKEN = (
    b'{"model": ',
    b"\xff\xfe\x00",
    b"[]",
    b"null",
    b'{"prompt": "x", "max_tokens": -1}',
    b'{"prompt": "x", "temperature": NaN}',
    b'{"prompt": "x", "max_tokens": 1e400}',
    b'{"prompt": "x", "no_such_field": 1}',
    b'{"prompt": {"deep": [[[[[]]]]]}}',
    b'{"prompt": "' + b"x" * 200_000 + b'", "max_tokens": 1}',
)
RSS_SHARE, RSS_FLOOR_BYTES = 0.05, 8 << 20  # flat: within 5 %, or 8 MiB where the process is small
SETTLE_S = 60.0


@dataclass(frozen=True)
class SoakPlan:
    """How hard and how long."""

    model: str
    seconds: float
    clients: int = 32
    disconnects: float = 0.05
    malformed: float = 0.02
    kill_engine: bool = True
    max_prompt_words: int = 60
    max_tokens: int = 48
    seed: int = 0
    timeout_s: float = 120.0  # of one request: an answer that never comes is a lost one
    server_options: tuple[str, ...] = ()


@dataclass
class SoakReport:
    """What was seen. `failures` is empty when everything held."""

    outcomes: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    checks: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    output_tokens: int = 0

    def check(self, name: str, holds: bool, figures: str) -> None:
        """Note one requirement."""
        self.checks[name] = figures
        if not holds:
            self.failures.append(f"{name}: {figures}")


@dataclass
class _Sample:
    at_s: float
    server_rss: int
    engine_pid: int | None
    engine_rss: int


class Soak:
    """One soak of one server process, which it starts and ends."""

    def __init__(self, plan: SoakPlan) -> None:
        self.plan, self.report = plan, SoakReport()
        self._outcomes: Counter[str] = Counter()
        self._samples: list[_Sample] = []
        self._killed_at_s: float | None = None
        self._recovered_s: float | None = None
        self._told_of_death = 0

    def run(self) -> SoakReport:
        """Start, load, kill, settle, judge, stop."""
        command = [sys.executable, "-m", "inferoptim", "serve", self.plan.model, "--port", "0", "--json"]
        process = subprocess.Popen([*command, *self.plan.server_options], stdout=subprocess.PIPE, text=True)
        try:
            url = _ready_url(process)
            asyncio.run(self._drive(process, url))
            process.send_signal(signal.SIGTERM)
            try:
                status = process.wait(60)
            except subprocess.TimeoutExpired:
                status = None
            self.report.check("stop", status == 0, f"exit status {status} after SIGTERM")
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        self.report.outcomes = dict(self._outcomes.most_common())
        return self.report

    async def _drive(self, process: subprocess.Popen[str], url: str) -> None:
        plan, server = self.plan, psutil.Process(process.pid)
        endpoint = Endpoint.parse(url)
        watcher = OpenAIClient(endpoint)
        await watcher.discover()
        await watcher.probe("completions")
        await self._client(server, watcher, 10**6, time.perf_counter() + min(5.0, plan.seconds / 6))  # warm
        before = await _idle_state(watcher)
        start = time.perf_counter()
        end = start + plan.seconds
        clients = [
            OpenAIClient(endpoint, model=watcher.model, timeout_s=plan.timeout_s) for _ in range(plan.clients)
        ]
        for client in clients:
            client.features = watcher.features
        work = [asyncio.ensure_future(self._client(server, c, i, end)) for i, c in enumerate(clients)]
        work.append(asyncio.ensure_future(self._sample(server, end)))
        if plan.kill_engine:
            work.append(asyncio.ensure_future(self._kill(server, watcher, start + plan.seconds * 0.4)))
        await asyncio.gather(*work)
        self.report.seconds = time.perf_counter() - start
        for client in clients:
            client.close()
        after = await _idle_state(watcher)
        self._judge(before, after)
        watcher.close()

    # -- load ---------------------------------------------------------------------------------------------------------

    async def _client(self, server: psutil.Process, client: OpenAIClient, number: int, end_s: float) -> None:
        """One client: one request after another, some of them bad."""
        rng = random.Random(self.plan.seed * 1000 + number)
        while time.perf_counter() < end_s:
            draw = rng.random()
            if draw < self.plan.malformed:
                await self._malformed(client, rng)
            elif draw < self.plan.malformed + self.plan.disconnects:
                await self._leave(client, rng)
            else:
                await self._ask(client, rng)

    def _message(self, client: OpenAIClient, rng: random.Random) -> tuple[bytes, int]:
        tokens = rng.randint(1, self.plan.max_tokens)
        words = " ".join(
            rng.choice(["alpha", "beta", "gamma", "delta", "eps", "zeta"])
            for _ in range(rng.randint(1, self.plan.max_prompt_words))
        )
        sampling = SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=rng.choice((0.0, 1.0)))
        prompt = ("shared system text " * 4 if rng.random() < 0.5 else "") + words
        return client.message(prompt, sampling, client.features), tokens

    async def _ask(self, client: OpenAIClient, rng: random.Random) -> None:
        message, tokens = self._message(client, rng)
        call = await client.call(message)
        if call.error is None:
            if call.output_tokens == tokens:
                self._outcomes["answered"] += 1
                self.report.output_tokens += tokens
            else:
                self._lose(f"{call.output_tokens} tokens of {tokens}, finish_reason {call.finish_reason}")
        elif call.error == "http_429":
            self._outcomes["refused: queue full (429)"] += 1
            await asyncio.sleep(min(float(call.retry_after or 1), 1.0) * rng.random())
        elif call.error in ("http_503", "stream_error") and self._killed_at_s is not None:
            self._outcomes["refused: engine dead (503 or error event)"] += 1
            self._told_of_death += 1
            await asyncio.sleep(0.2 * rng.random())
        else:
            self._lose(f"{call.error} {call.detail}")

    async def _leave(self, client: OpenAIClient, rng: random.Random) -> None:
        message, _ = self._message(client, rng)
        task = asyncio.ensure_future(client.call(message))
        done, _ = await asyncio.wait({task}, timeout=rng.expovariate(8.0))
        if done:
            self._outcomes["left: too late, it was answered"] += 1
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self._outcomes["left before the end"] += 1

    async def _malformed(self, client: OpenAIClient, rng: random.Random) -> None:
        body = rng.choice(BROKEN)
        call = Call()
        try:
            await client.http.exchange(client.endpoint.message("POST", "/v1/completions", body), call)
        except TransportError as error:
            self._lose(f"malformed body {body[:30]!r}: {error}")
            return
        if call.status is not None and 400 <= call.status < 500:
            self._outcomes["refused: malformed (4xx)"] += 1
        elif call.status == 503 and self._killed_at_s is not None:
            self._outcomes["refused: engine dead (503 or error event)"] += 1
        else:
            self._lose(f"malformed body {body[:30]!r}: HTTP {call.status}")

    def _lose(self, what: str) -> None:
        self._outcomes["LOST"] += 1
        if len(self.report.lost) < 20:
            self.report.lost.append(what)

    # -- beside the load ----------------------------------------------------------------------------------------------

    async def _kill(self, server: psutil.Process, watcher: OpenAIClient, at_s: float) -> None:
        await asyncio.sleep(max(0.0, at_s - time.perf_counter()))
        engines = _engines(server)
        if not engines:
            self.report.check("engine", False, "no engine process to kill")
            return
        self._killed_at_s = time.perf_counter()
        engines[0].kill()
        while time.perf_counter() < self._killed_at_s + 120:
            await asyncio.sleep(0.1)
            status, _ = await watcher.get("/ready")
            fresh = [e for e in _engines(server) if e.pid != engines[0].pid]
            if status == 200 and fresh:
                self._recovered_s = time.perf_counter() - self._killed_at_s
                return

    async def _sample(self, server: psutil.Process, end_s: float) -> None:
        while time.perf_counter() < end_s:
            engines = _engines(server)
            pid, rss = None, 0
            try:
                if engines:
                    pid, rss = engines[0].pid, engines[0].memory_info().rss
                self._samples.append(_Sample(time.perf_counter(), server.memory_info().rss, pid, rss))
            except psutil.Error:
                pass  # it died between the two lines: the kill is part of the plan
            await asyncio.sleep(min(1.0, self.plan.seconds / 60))

    # -- verdict ------------------------------------------------------------------------------------------------------

    def _judge(self, before: dict[str, float], after: dict[str, float]) -> None:
        report = self.report
        lost = self._outcomes.get("LOST", 0)
        total = sum(self._outcomes.values())
        report.check(
            "answered",
            lost == 0 and total > 0,
            f"{total} requests, {lost} lost" + "".join(f"; {x}" for x in report.lost[:3]),
        )
        held = {name: after[name] for name in ("running", "waiting", "kv_used", "kv_share") if after[name]}
        report.check("blocks", not held, f"held once idle: {held or 'nothing'}")
        for name, what in (("tasks", "asyncio tasks"), ("files", "open files")):
            report.check(
                name,
                after[name] <= before[name],
                f"{what}: {before[name]:.0f} before, {after[name]:.0f} after",
            )
        self._judge_memory()
        if self.plan.kill_engine:
            recovered = "never" if self._recovered_s is None else f"after {self._recovered_s:.1f} s"
            told = f"{self._told_of_death} requests were told; ready again {recovered}"
            report.check("engine", self._recovered_s is not None and self._told_of_death > 0, told)

    def _judge_memory(self) -> None:
        """The last fifth of each process's life against the fifth that follows its first two fifths (warm-up)."""
        lives: dict[str, list[int]] = {"server": [s.server_rss for s in self._samples]}
        for sample in self._samples:
            if sample.engine_pid is not None:
                lives.setdefault(f"engine {sample.engine_pid}", []).append(sample.engine_rss)
        parts, flat = [], True
        for name, values in lives.items():
            if len(values) < 10:
                continue
            fifth = len(values) // 5
            early, late = statistics.median(values[2 * fifth : 3 * fifth]), statistics.median(values[-fifth:])
            flat &= abs(late - early) <= max(RSS_SHARE * early, RSS_FLOOR_BYTES)
            parts.append(f"{name} {early / 2**20:.0f} → {late / 2**20:.0f} MiB ({late / early - 1:+.1%})")
        self.report.check("memory", flat and bool(parts), "; ".join(parts))


def _ready_url(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    url = ""
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "bound":
            url = event["url"]
        elif event["event"] == "ready":
            return url
    raise SystemExit(f"the server ended with status {process.wait()} before it was ready")


def _engines(server: psutil.Process) -> list[psutil.Process]:
    try:
        return [c for c in server.children() if c.is_running() and c.status() != psutil.STATUS_ZOMBIE]
    except psutil.Error:
        return []


async def _idle_state(client: OpenAIClient) -> dict[str, float]:
    """The server's own counts once nothing is in flight; waits for that, at most `SETTLE_S`."""
    deadline = time.perf_counter() + SETTLE_S
    best: dict[str, float] = {}
    while time.perf_counter() < deadline:
        # a connection of its own, closed at once: keep-alive connections of the load must be gone, not counted
        http = HttpClient(client.endpoint, 30.0)
        probe = OpenAIClient(client.endpoint)
        probe.http = http
        status, body = await probe.get("/metrics")
        http.close()
        if status == 200:
            found = _metrics(body.decode())
            best = found if not best else {name: min(best[name], value) for name, value in found.items()}
            if not any(found[name] for name in ("running", "waiting", "kv_used", "kv_share")):
                settled = found
                await asyncio.sleep(1.0)  # sockets that were closed leave the table of open files
                status, body = await client.get("/metrics")
                again = _metrics(body.decode())
                return {name: min(settled[name], again[name]) for name in settled}
        await asyncio.sleep(0.2)
    return best


def _metrics(text: str) -> dict[str, float]:
    names = {
        "inferoptim_requests_running": "running",
        "inferoptim_requests_waiting": "waiting",
        "inferoptim_kv_cache_used_tokens": "kv_used",
        "inferoptim_kv_cache_usage_ratio": "kv_share",
        "inferoptim_server_tasks": "tasks",
        'inferoptim_process_open_fds{process="server"}': "files",
    }
    found = dict.fromkeys(names.values(), float("nan"))
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        if name in names:
            found[names[name]] = float(value)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one request")
    parser.add_argument("--json", type=Path)
    parser.add_argument("server_options", nargs="*", help="options of `inferoptim serve`, after --")
    asked = parser.parse_args(argv)
    options = tuple(asked.server_options) or ("--max-queue", "16", "-e", "max_num_seqs=8")
    plan = SoakPlan(
        asked.model, asked.minutes * 60, asked.clients, timeout_s=asked.timeout, server_options=options
    )
    report = Soak(plan).run()
    print(f"{report.seconds:.0f} s, {report.output_tokens} output tokens")
    for name, count in report.outcomes.items():
        print(f"  {count:>8}  {name}")
    failed = {line.partition(":")[0] for line in report.failures}
    for name, figures in report.checks.items():
        print(f"  {'FAIL' if name in failed else 'ok':>8}  {name}: {figures}")
    if asked.json:
        asked.json.write_text(json.dumps({"plan": asdict(plan), **asdict(report)}, indent=2) + "\n")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
