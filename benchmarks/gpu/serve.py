"""A real `inferoptim serve` process on the GPU: `python -m benchmarks.gpu --phases serve`.

Requests stream over HTTP while /metrics is read; then what the metrics say is held against what was sent and what the model
weighs. Speed over HTTP stands beside the same engine called in this process.
"""

from __future__ import annotations

import asyncio
import statistics
import time
import urllib.request
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.gpu.shapes import Case
from benchmarks.serving import Server, Streamed, gaps, payloads, percentile, run, stream_all

CASE = Case(32, 100, 200)
REPEATS = 7
ALONE = 12  # requests one after the other, for the time to the first token at low load
USD_PER_HOUR, USD_PER_KWH = (
    3.6,
    0.2,
)  # made up: what is checked is that time and energy become money at these prices
LEAST_POWER_W = 20.0
_LABELLED = ("reason", "direction")  # labels that tell samples of one metric apart

Metrics = dict[str, float]


def measure(
    where: str, fields: dict[str, Any], device: str = "cuda", case: str = str(CASE)
) -> dict[str, Any]:
    """Serve the model folder; 'failed' names what is not as it should be.

    Args:
        fields: of EngineConfig.
        device: on "cpu" there must be no GPU metric.
        case: requests at once, tokens of each prompt and of each answer.
    """
    work, rng = Case.parse(case), np.random.default_rng(7)
    began = time.perf_counter()
    words = [
        word for name, value in {**fields, "device": device}.items() for word in ("-e", f"{name}={value}")
    ]
    money = ("--usd-per-hour", str(USD_PER_HOUR), "--usd-per-kwh", str(USD_PER_KWH))
    server = Server(where, *money, *words)
    base = f"http://127.0.0.1:{server.port}"
    try:
        ready = _get(f"{base}/ready")
        out: dict[str, Any] = {
            "start_s": time.perf_counter() - began,
            "ready": ready,
            "engine": server.engine,
        }

        took_s = 0.0

        def stream(count: int, tokens: int) -> list[Streamed]:
            nonlocal took_s
            requests = payloads(prompts(rng, count, work.n_in), tokens)
            began = time.perf_counter()
            streamed = run(stream_all(server.port, requests, count))
            took_s = time.perf_counter() - began
            return streamed

        stream(work.requests, work.n_out)  # warms up: kernels compile, memory is taken
        before, sent = scrape(base), 0
        alone = [stream(1, 4)[0] for _ in range(ALONE)]
        sent += sum(s.tokens for s in alone)
        times, many, busy = [], [], {}
        for number in range(REPEATS):
            if number:
                many += stream(work.requests, work.n_out)
                times.append(took_s)
            else:  # read under load, and not timed for it
                many, busy = asyncio.run(
                    _scraped(base, server.port, prompts(rng, work.requests, work.n_in), work)
                )
        sent += sum(s.tokens for s in many)
        after = scrape(base)
    except BaseException:
        server.process.kill()
        raise
    asked = time.perf_counter()
    server.process.terminate()
    status = server.process.wait(60)
    between = gaps(many)
    out.update(
        stop_s=time.perf_counter() - asked, exit_status=status, case=str(work), times_s=times,
        output_tokens_per_s=work.requests * work.n_out / statistics.median(times),
        ttft_alone_s=statistics.median(s.arrivals_s[0] - s.sent_s for s in alone),
        ttft_s=statistics.median(s.arrivals_s[0] - s.sent_s for s in many),
        gap_p50_s=percentile(between, 0.5), gap_p99_s=percentile(between, 0.99),
        tokens_per_event=sum(s.tokens for s in many) / sum(s.events for s in many),
        metrics_busy=_chosen(busy), metrics_after=_chosen(after),
    )  # fmt: skip
    requests = ALONE + REPEATS * work.requests
    out["failed"] = list(_wrong(out, before, busy, after, sent, requests, device == "cuda"))
    return out


def in_process(where: str, fields: dict[str, Any], case: str = str(CASE)) -> dict[str, Any]:
    """The same work without the server."""
    from inferoptim import LLM, SamplingParams

    work, rng = Case.parse(case), np.random.default_rng(7)
    llm = LLM(where, **fields)
    sampling = SamplingParams(max_tokens=work.n_out, temperature=0, ignore_eos=True)
    times = []
    for _ in range(1 + REPEATS):
        asked, started = prompts(rng, work.requests, work.n_in), time.perf_counter()
        llm.generate(asked, sampling)
        times.append(time.perf_counter() - started)
    median = statistics.median(times[1:])
    return {"times_s": times[1:], "output_tokens_per_s": work.requests * work.n_out / median}


def prompts(rng: np.random.Generator, count: int, tokens: int) -> list[list[int]]:
    """Random tokens, without a common prefix."""
    found: list[list[int]] = rng.integers(10, 1000, (count, tokens)).tolist()
    return found


def scrape(base: str) -> Metrics:
    """Samples of /metrics: summed over tenants, phases and GPUs, but for power, of which the lowest counts."""
    _get(f"{base}/health?deep=1")  # the engine has answered, so its last counters are here
    found: Metrics = {}
    for family in text_string_to_metric_families(_get(f"{base}/metrics")):
        for sample in family.samples:
            tail = "".join(f" {sample.labels[k]}" for k in _LABELLED if k in sample.labels)
            name = sample.name.removeprefix("inferoptim_") + tail
            both: Callable[[float, float], float] = min if "power" in name else lambda a, b: a + b
            found[name] = both(found[name], sample.value) if name in found else sample.value
    return found


async def _scraped(
    base: str, port: int, asked: list[list[int]], work: Case
) -> tuple[list[Streamed], Metrics]:
    """Stream, and read the metrics once it is under way."""
    load = asyncio.create_task(stream_all(port, payloads(asked, work.n_out), work.requests))
    await asyncio.wait([load], timeout=0.2)
    seen = await asyncio.to_thread(scrape, base)
    return await load, seen


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        text: str = answer.read().decode()
        return text


def _chosen(metrics: Metrics) -> Metrics:
    """Those for the report."""
    wanted = (
        "gpu_",
        "cost",
        "generation_tokens_total",
        "requests_finished",
        "process_resident",
        "engine_busy",
    )
    return {name: value for name, value in metrics.items() if any(w in name for w in wanted)}


def _wrong(
    out: dict[str, Any], before: Metrics, busy: Metrics, after: Metrics, sent: int, requests: int, gpu: bool
) -> Iterable[str]:
    def grown(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    if out["exit_status"] != 0:
        yield f"SIGTERM: exit status {out['exit_status']}, 0 is due"
    if grown("generation_tokens_total") != sent:
        yield f"generation_tokens_total grew by {grown('generation_tokens_total'):.0f}, {sent} tokens came"
    if grown("requests_finished_total length") != requests:
        yield f"requests_finished_total grew by {grown('requests_finished_total length'):.0f}, {requests} were sent"
    for name in ("cost_usd_total", "wall_cost_usd_total", "engine_busy_seconds_total"):
        if not grown(name) > 0:
            yield f"{name} did not move"
    due = grown("engine_busy_seconds_total") * USD_PER_HOUR / 3600
    if not abs(grown("cost_usd_total") - due) <= 0.01 * due:
        yield f"cost_usd_total grew by {grown('cost_usd_total'):.3g}; the busy seconds cost {due:.3g}"
    there = sorted(name for name in after if name.startswith(("gpu_", "energy_")))
    if not gpu:
        if there:
            yield f"there is no GPU, but {', '.join(there)}"
        return
    weights = out["engine"]["weight_bytes"]
    least = {
        "gpu_power_watts": LEAST_POWER_W, "gpu_memory_used_bytes": weights, "gpu_memory_total_bytes": weights,
        "gpu_utilization_ratio": 0.0, "gpu_energy_joules_total": 0.0, "energy_cost_usd_total": 0.0,
    }  # fmt: skip
    for name, lowest in least.items():
        for moment, seen in (("under load", busy), ("at the end", after)):
            if name not in seen:
                yield f"{name} is absent {moment}"
            elif not seen[name] >= lowest:
                yield f"{name} is {seen[name]:.4g} {moment}, at least {lowest:.4g} is due"
    if not grown("gpu_energy_joules_total") > 0:
        yield "gpu_energy_joules_total did not move"
    own = after.get(
        "gpu_process_memory_bytes"
    )  # absent where the driver does not see this machine's process ids
    if own is not None and not weights <= own <= after["gpu_memory_used_bytes"]:
        yield f"gpu_process_memory_bytes is {own:.4g}, between {weights:.4g} and all that is in use is due"
