"""What the load client can send and read, beside httpx and beside the same connection with nothing read into.

    python benchmarks/load_client.py [--seconds 2] [--repeats 3] [--json FILE]

All against the null server, which has its answers encoded before the first request and runs in a process of its own. The
three take turns in every repeat. "bytes only" parses HTTP and throws the events away: the ceiling of the client's reading.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from inferoptim.bench.load.self_test import null_server
from inferoptim.config import SamplingParams
from inferoptim.targets.http_client import Endpoint
from inferoptim.targets.openai_client import OpenAIClient

CONCURRENCY = 64
PROMPT = "word " * 100
One = Callable[[], Awaitable[None]]


class _Discard:
    """A sink that reads nothing."""

    def on_head(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        assert status == 200

    def on_body(self, data: bytes, now_s: float) -> None:
        pass


async def _rate(one: One, seconds: float) -> float:
    """Requests/s of `CONCURRENCY` workers."""
    done, start = 0, time.perf_counter()

    async def worker() -> None:
        nonlocal done
        while time.perf_counter() < start + seconds:
            await one()
            done += 1

    await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))
    return done / (time.perf_counter() - start)


async def _measure(port: int, tokens: int, seconds: float, repeats: int) -> dict[str, list[float]]:
    import httpx

    url = f"http://127.0.0.1:{port}"
    client = OpenAIClient(Endpoint.parse(url), model="null")
    sampling = SamplingParams(max_tokens=tokens, temperature=0.0)
    message = client.message(PROMPT, sampling)
    body = message.partition(b"\r\n\r\n")[2]
    discard = _Discard()
    limits = httpx.Limits(max_connections=CONCURRENCY, max_keepalive_connections=CONCURRENCY)

    async def ours() -> None:
        call = await client.call(message)
        assert call.error is None
        assert call.output_tokens == tokens

    async def bytes_only() -> None:
        await client.http.exchange(message, discard)

    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=30) as peer:

        async def theirs() -> None:
            seen = 0
            async with peer.stream("POST", "/v1/completions", content=body) as answer:
                async for line in answer.aiter_lines():
                    if line.startswith("data: {"):
                        seen += bool(json.loads(line[6:])["choices"])
            assert seen == tokens

        names: dict[str, One] = {"load client": ours, "bytes only": bytes_only, "httpx": theirs}
        rates: dict[str, list[float]] = {name: [] for name in names}
        for one in names.values():
            await _rate(one, min(seconds, 0.3))  # warm-up
        for _ in range(repeats):
            for name, one in names.items():
                rates[name].append(await _rate(one, seconds))
    client.close()
    return rates


def main(argv: Sequence[str] | None = None) -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(argv)
    import uvloop

    results: dict[str, dict[str, list[float]]] = {}
    with null_server() as port:
        for tokens in (1, 16, 128):
            rates = uvloop.run(_measure(port, tokens, asked.seconds, asked.repeats))
            results[str(tokens)] = rates
            print(f"{tokens} tokens an answer, {CONCURRENCY} at once, {asked.repeats} × {asked.seconds:g} s")
            for name, values in rates.items():
                middle = statistics.median(values)
                share = middle / statistics.median(rates["bytes only"])
                print(
                    f"  {name:<12} {middle:9,.0f} requests/s ({min(values):,.0f}–{max(values):,.0f})"
                    f"  {middle * tokens:10,.0f} tokens/s  {share:6.1%} of bytes only"
                )
    if asked.json:
        asked.json.write_text(
            json.dumps({"machine": platform.processor(), "requests_per_s": results}, indent=2) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
