"""What the HTTP server costs, measured beside the same engine called in-process.

    python benchmarks/serving.py [--model smollm2-135m] [--repeats 3] [--json FILE]

Three questions, each with its own load:

1. Throughput: 32 requests at once, streamed over HTTP, against `LLM.generate` on the same prompts. The engine's settings
   are the same; the two take turns on the same cores, and the client shares them with the server.
2. Latency: one request at a time; time to the first token over HTTP minus the same in-process. Gaps between tokens (ITL)
   with P99/P50, alone and at 32 requests.
3. Ceiling: the null engine (no model) behind the same server: tokens and events a second. It is the floor of the path's
   cost: a server with a model cannot stream faster than this.

The client reads raw bytes from a socket and parses nothing but the usage at the end, so that it takes little of the
cores that it shares. On the server, tokens that wait together leave as one event; events and tokens are both counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

Result = TypeVar("Result")

IN_TOKENS, OUT_TOKENS, CONCURRENCY = 96, 128, 32
CEILING_STREAMS = 64


@dataclass
class Streamed:
    """What one streamed request looked like from the client's side."""

    sent_s: float = 0.0
    arrivals_s: list[float] = field(default_factory=list)  # one a read that brought text
    events: int = 0
    tokens: int = 0
    done: bool = False


class Stream(asyncio.Protocol):
    """One request on one connection."""

    def __init__(self, payload: bytes, result: Streamed, finished: asyncio.Future[None]) -> None:
        self._payload, self._result, self._finished = payload, result, finished
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._result.sent_s = time.perf_counter()
        self._transport.write(self._payload)

    def data_received(self, data: bytes) -> None:
        result = self._result
        count = data.count(b'"text":')
        if count:
            result.arrivals_s.append(time.perf_counter())
            result.events += count
        self._tail = (self._tail + data)[-1500:]
        if b"[DONE]" in self._tail:
            at = self._tail.rfind(b'"completion_tokens":') + len(b'"completion_tokens":')
            result.tokens = int(self._tail[at : self._tail.index(b",", at)])
            result.done = True
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._finished.done():
            self._finished.set_result(None)


def payloads(prompts: list[list[int]], out_tokens: int) -> list[bytes]:
    """The requests as they go over the wire; made before the clock runs, for no server makes them."""
    written = []
    for prompt in prompts:
        fields = {
            "model": "m", "prompt": prompt, "max_tokens": out_tokens, "temperature": 0, "ignore_eos": True,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        body = json.dumps(fields).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        written.append(head.encode() + body)
    return written


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """As `asyncio.run`, on uvloop where it is installed: the client then takes less of what it shares with the server."""
    try:
        import uvloop
    except ModuleNotFoundError:
        return asyncio.run(coroutine)
    result: Result = uvloop.run(coroutine)
    return result


async def stream_all(port: int, requests: list[bytes], at_once: int) -> list[Streamed]:
    """Send every request (see `payloads`) and read its stream, `at_once` at a time."""
    loop = asyncio.get_running_loop()
    results = [Streamed() for _ in requests]
    gate = asyncio.Semaphore(at_once)

    async def one(request: bytes, result: Streamed) -> None:
        async with gate:
            finished: asyncio.Future[None] = loop.create_future()
            await loop.create_connection(lambda: Stream(request, result, finished), "127.0.0.1", port)
            await finished
        if not result.done:
            raise SystemExit("the server closed a stream before its end")

    await asyncio.gather(*(one(request, r) for request, r in zip(requests, results, strict=True)))
    return results


class Server:
    """`inferoptim serve` as a child process."""

    def __init__(self, model: str, *options: str) -> None:
        command = [
            sys.executable, "-m", "inferoptim", "serve", model, "--served-model-name", "m", "--port", "0", "--json",
            "--max-queue", "4096", *options,
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = 0
        self.engine: dict[str, Any] = {}
        for line in self.process.stdout:
            said = json.loads(line)
            if said["event"] == "bound":
                self.port = int(said["url"].rpartition(":")[2])
            elif said["event"] == "ready":
                self.engine = said["engine"]
                return
        raise SystemExit("the server did not start")

    def stop(self) -> None:
        """End it."""
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait(30) != 0:
            raise SystemExit(f"the server ended with status {self.process.returncode}")


def percentile(values: list[float], q: float) -> float:
    """Nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def gaps(results: list[Streamed]) -> list[float]:
    """Gaps between arrivals of the same stream, seconds."""
    return [b - a for r in results for a, b in zip(r.arrivals_s, r.arrivals_s[1:], strict=False)]


def make_prompts(count: int, salt: int) -> list[list[int]]:
    """Prompts of IN_TOKENS ids without a common prefix."""
    return [[1000 + (salt * 7919 + i * 131 + j * 17) % 20000 for j in range(IN_TOKENS)] for i in range(count)]


def compare(model: str, engine: list[str], repeats: int) -> dict[str, Any]:
    """Questions 1 and 2."""
    from inferoptim import LLM, SamplingParams
    from inferoptim.cli.serve import assignments

    llm = LLM(model, **assignments(engine))
    server = Server(model, *(word for field_ in engine for word in ("-e", field_)))
    sampling = SamplingParams(max_tokens=OUT_TOKENS, temperature=0, ignore_eos=True)
    short = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    in_process: list[float] = []
    served: list[float] = []
    many: list[Streamed] = []
    for turn in range(repeats + 1):  # the first turn warms both up
        prompts = make_prompts(CONCURRENCY, salt=turn)
        started_s = time.perf_counter()
        outputs = llm.generate(prompts, sampling)
        rate = sum(len(o.token_ids) for o in outputs) / (time.perf_counter() - started_s)
        requests = payloads(prompts, OUT_TOKENS)
        started_s = time.perf_counter()
        results = run(stream_all(server.port, requests, CONCURRENCY))
        served_rate = sum(r.tokens for r in results) / (time.perf_counter() - started_s)
        if turn:
            in_process.append(rate)
            served.append(served_rate)
            many += results
    first_in_process: list[float] = []
    first_served: list[float] = []
    alone: list[Streamed] = []
    for turn in range(repeats * 10):
        prompt = make_prompts(1, salt=1000 + turn)[0]
        started_s = time.perf_counter()
        for _ in llm.stream(prompt, short):
            first_in_process.append(time.perf_counter() - started_s)
            break
        results = run(stream_all(server.port, payloads([prompt], 8), 1))
        first_served.append(results[0].arrivals_s[0] - results[0].sent_s)
    for turn in range(repeats):
        alone += run(stream_all(server.port, payloads(make_prompts(1, salt=5000 + turn), OUT_TOKENS), 1))
    server.stop()
    alone_gaps, many_gaps = gaps(alone), gaps(many)
    return {
        "model": model,
        "engine": engine,
        "work": f"{CONCURRENCY} x ({IN_TOKENS}+{OUT_TOKENS}), greedy",
        "in_process_tokens_per_s": in_process,
        "served_tokens_per_s": served,
        "served_over_in_process": statistics.median(served) / statistics.median(in_process),
        "tokens_per_event": sum(r.tokens for r in many) / sum(r.events for r in many),
        "ttft_in_process_ms": statistics.median(first_in_process) * 1e3,
        "ttft_served_ms": statistics.median(first_served) * 1e3,
        "ttft_added_ms": (statistics.median(first_served) - statistics.median(first_in_process)) * 1e3,
        "ttft_samples": len(first_served),
        "itl_alone_ms": {q: percentile(alone_gaps, int(q[1:]) / 100) * 1e3 for q in ("p50", "p99")},
        "itl_alone_p99_over_p50": percentile(alone_gaps, 0.99) / percentile(alone_gaps, 0.5),
        "itl_at_32_ms": {q: percentile(many_gaps, int(q[1:]) / 100) * 1e3 for q in ("p50", "p99")},
        "itl_at_32_p99_over_p50": percentile(many_gaps, 0.99) / percentile(many_gaps, 0.5),
    }


def ceiling(model: str) -> list[dict[str, Any]]:
    """Question 3: tokens offered at a rising rate, then as fast as they are taken."""
    rows = []
    for step_ms in (8.0, 4.0, 2.0, 1.0, 0.0):
        server = Server(model, "--null-engine-step-ms", str(step_ms), "-e", f"max_num_seqs={CEILING_STREAMS}")
        out_tokens = int(min(4000.0 / step_ms, 4000)) if step_ms else 4000  # about four seconds
        for turn in range(2):  # the first warms up
            requests = payloads(make_prompts(CEILING_STREAMS, salt=turn), out_tokens)
            started_s = time.perf_counter()
            results = run(stream_all(server.port, requests, CEILING_STREAMS))
            took_s = time.perf_counter() - started_s
        server.stop()
        tokens, events = sum(r.tokens for r in results), sum(r.events for r in results)
        rows.append(
            {
                "streams": CEILING_STREAMS,
                "offered_tokens_per_s": CEILING_STREAMS / step_ms * 1e3 if step_ms else None,
                "tokens_per_s": tokens / took_s,
                "events_per_s": events / took_s,
                "tokens_per_event": tokens / events,
            }
        )
    return rows


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--engine", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=("compare", "ceiling"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    import torch

    result: dict[str, Any] = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if options.only != "ceiling":
        result["compare"] = compare(options.model, options.engine, options.repeats)
    if options.only != "compare":
        result["ceiling"] = ceiling(options.model)
    text = json.dumps(result, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
