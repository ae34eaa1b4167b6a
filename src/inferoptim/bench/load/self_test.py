"""The client's own ceiling, measured: the same client code against a server that answers at once, in its own process."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from inferoptim.bench.load.rows import encoded
from inferoptim.bench.load.run_stage import record_of
from inferoptim.config import SamplingParams
from inferoptim.errors import UnsupportedError
from inferoptim.records.load_schema import Objectives, SelfTest
from inferoptim.targets.http_client import Endpoint
from inferoptim.targets.openai_client import OpenAIClient

CONCURRENCY = 64
START_S = 30.0
MAX_TOKENS = 1024  # per answer of the self-test


@contextmanager
def null_server() -> Iterator[int]:
    """A null server in a subprocess; its port. It ends with this block, or with this process.

    Raises:
        UnsupportedError: it did not start.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "inferoptim.bench.load.null_server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,  # Ctrl-C in the terminal is for the load test; this one ends when its stdin closes
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stderr is not None
    try:
        line = process.stdout.readline()
        if not line.strip().isdigit():
            why = process.stderr.read().decode("utf-8", "replace").strip().splitlines()
            raise UnsupportedError(
                f"the null server of the self-test did not start: {why[-1] if why else 'no port'}"
            )
        yield int(line)
    finally:
        process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        process.stderr.close()


async def self_test(
    prompt: str, tokens: int, duration_s: float = 1.0, concurrency: int = CONCURRENCY
) -> SelfTest:
    """How many requests and tokens a second this client reaches on this machine, now.

    Args:
        prompt: a prompt like the run's, so that the requests have the same size.
        tokens: of each answer; at most `MAX_TOKENS` are asked.
    """
    tokens = min(tokens, MAX_TOKENS)
    with null_server() as port:
        client = OpenAIClient(Endpoint.parse(f"http://127.0.0.1:{port}"), model="null", timeout_s=START_S)
        message = client.message(prompt, SamplingParams(max_tokens=tokens, temperature=0.0))
        await client.http.warm(concurrency)
        start = time.perf_counter()
        end, done = start + duration_s, 0

        async def worker() -> None:
            nonlocal done
            while time.perf_counter() < end:
                call = await client.call(message)
                if call.error is not None or call.output_tokens != tokens:
                    raise UnsupportedError(f"self-test of the load client: {call.error} {call.detail}")
                encoded(record_of("self-test", done, call, None, start, Objectives()))  # as a run does
                done += 1

        try:
            await asyncio.gather(*(worker() for _ in range(concurrency)))
        finally:
            client.close()
        wall = time.perf_counter() - start
    return SelfTest(
        requests_per_s=done / wall,
        output_tokens_per_s=done * tokens / wall,
        tokens_per_request=tokens,
        concurrency=concurrency,
        duration_s=wall,
    )
