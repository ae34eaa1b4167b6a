"""Counters as Prometheus text: our names, and on request those of vLLM for tools that already know them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psutil
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from inferoptim import __version__
from inferoptim.hardware.gpu_meter import GpuMeter
from inferoptim.serving.metrics import Histogram, Metrics

PREFIX = "inferoptim_"
# (name, what it is, how to read it). Counters get _total from the client library.
_GAUGES = (
    ("requests_running", "Sequences that the engine computes now.", "running"),
    ("requests_waiting", "Sequences that wait for a place in the batch.", "waiting"),
)
_COUNTERS = (
    ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", "prefix_cache_query_tokens"),
    ("prefix_cache_hits", "Prompt tokens found in the prefix cache.", "prefix_cache_hit_tokens"),
    ("preemptions", "Sequences that lost their KV blocks to older ones.", "preemptions"),
    ("engine_steps", "Steps of the engine.", "steps"),
    ("scheduled_tokens", "Tokens computed.", "scheduled_tokens"),
    ("engine_busy_seconds", "Seconds that the engine spent in steps.", "busy_s"),
    ("spec_decode_draft_tokens", "Draft tokens proposed.", "draft_proposed_tokens"),
    ("spec_decode_accepted_tokens", "Draft tokens accepted.", "draft_accepted_tokens"),
)
_HISTOGRAMS = (
    ("time_to_first_token_seconds", "Arrival to first token.", "ttft"),
    ("inter_token_latency_seconds", "Each gap between two tokens of a sequence.", "itl"),
    ("time_per_output_token_seconds", "Mean gap between the tokens of a sequence.", "tpot"),
    ("e2e_request_latency_seconds", "Arrival to last token.", "e2e"),
    ("request_queue_time_seconds", "Arrival to first computation.", "queue"),
    ("request_prefill_time_seconds", "First computation to first token.", "prefill"),
    ("request_decode_time_seconds", "First token to last token.", "decode"),
    ("request_prompt_tokens", "Tokens of a prompt.", "prompt_tokens"),
    ("request_generation_tokens", "Tokens of an output.", "generation_tokens"),
)
# vLLM's name → ours, where the meaning is the same. Source: vllm/v1/metrics/loggers.py.
_VLLM_GAUGES = {
    "vllm:num_requests_running": "requests_running",
    "vllm:num_requests_waiting": "requests_waiting",
    "vllm:kv_cache_usage_perc": "kv_cache_usage_ratio",
}
_VLLM_COUNTERS = {
    "vllm:prefix_cache_queries": "prefix_cache_queries",
    "vllm:prefix_cache_hits": "prefix_cache_hits",
    "vllm:num_preemptions": "preemptions",
    "vllm:spec_decode_num_draft_tokens": "spec_decode_draft_tokens",
    "vllm:spec_decode_num_accepted_tokens": "spec_decode_accepted_tokens",
}
_VLLM_HISTOGRAMS = {
    "vllm:time_to_first_token_seconds": "time_to_first_token_seconds",
    "vllm:inter_token_latency_seconds": "inter_token_latency_seconds",
    "vllm:request_time_per_output_token_seconds": "time_per_output_token_seconds",
    "vllm:e2e_request_latency_seconds": "e2e_request_latency_seconds",
    "vllm:request_queue_time_seconds": "request_queue_time_seconds",
    "vllm:request_prefill_time_seconds": "request_prefill_time_seconds",
    "vllm:request_decode_time_seconds": "request_decode_time_seconds",
    "vllm:request_prompt_tokens": "request_prompt_tokens",
    "vllm:request_generation_tokens": "request_generation_tokens",
}


class Exporter(Collector):
    """Reads `Metrics` at each scrape.

    Args:
        metrics: what to read.
        model: the served model's name, a label of vLLM's metrics.
        engine_pid: process id of the engine, if there is one.
        alias: also write vLLM's names.
        gpus: a meter for each GPU that the engine uses; those that are there at a scrape are read.
    """

    def __init__(
        self,
        metrics: Metrics,
        model: str,
        engine_pid: Callable[[], int | None],
        *,
        alias: bool,
        gpus: Sequence[GpuMeter],
    ) -> None:
        self._metrics, self._model, self._engine_pid = metrics, model, engine_pid
        self._alias, self._gpus = alias, gpus
        self._server = psutil.Process(os.getpid())

    def registry(self) -> CollectorRegistry:
        """A registry with this collector only."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return registry

    def collect(self) -> Iterator[Metric]:
        """Every metric, read now."""
        yield from self._engine()
        yield from self._requests()
        yield from self._money()
        yield from self._processes()
        if self._gpus:
            yield from self._gpu_metrics()
        if self._alias:
            yield from self._vllm()

    # -- ours ---------------------------------------------------------------------------------------------------------

    def _engine(self) -> Iterator[Metric]:
        metrics = self._metrics
        info = metrics.info
        labels = {
            "version": __version__,
            "model": self._model,
            "device": str(info.get("device", "")),
            "dtype": str(info.get("dtype", "")),
            "decoder": str(info.get("decoder", "")),
        }
        yield _gauge("server_info", "Always 1; the labels say what runs here.", 1, labels)
        yield _gauge(
            "engine_up", "1 while the engine runs and its model is loaded.", float(metrics.engine_up)
        )
        yield _counter("engine_deaths", "Engine processes that died.", metrics.engine_deaths)
        for name, text, key in _GAUGES:
            yield _gauge(name, text, metrics.gauges.get(key, 0))
        capacity = metrics.gauges.get("kv_capacity_tokens")
        if capacity:
            used, reserved = metrics.gauges["kv_used_tokens"], metrics.gauges["kv_reserved_tokens"]
            yield _gauge(
                "kv_cache_usage_ratio",
                "Part of the KV-cache's blocks that sequences own.",
                reserved / capacity,
            )
            yield _gauge("kv_cache_used_tokens", "Tokens whose KV is live.", used)
            yield _gauge("kv_cache_capacity_tokens", "Tokens that the KV-cache holds.", capacity)
        for name, text, key in _COUNTERS:
            yield _counter(name, text, metrics.counter(key))

    def _requests(self) -> Iterator[Metric]:
        metrics = self._metrics
        finished = CounterMetricFamily(
            PREFIX + "requests_finished", "Sequences that ended, by reason.", labels=["reason"]
        )
        for reason in sorted({"stop", "length", "abort", "deadline", "error", *metrics.finished}):
            finished.add_metric([reason], metrics.finished[reason])
        yield finished
        responses = CounterMetricFamily(
            PREFIX + "http_responses", "HTTP answers, by route and status.", labels=["route", "status"]
        )
        for (route, status), count in sorted(metrics.responses.items()):
            responses.add_metric([route, str(status)], count)
        yield responses
        total = metrics.ledger.total
        yield _counter("prompt_tokens", "Prompt tokens of computed requests.", total.prompt_tokens)
        yield _counter("prompt_tokens_cached", "Of those, found in the prefix cache.", total.cached_tokens)
        yield _counter("generation_tokens", "Output tokens.", total.generation_tokens)
        for name, text, attribute in _HISTOGRAMS:
            yield _histogram(PREFIX + name, text, getattr(metrics, attribute))

    def _money(self) -> Iterator[Metric]:
        ledger = self._metrics.ledger
        seconds = CounterMetricFamily(
            PREFIX + "tenant_engine_seconds",
            "Engine seconds used, by tenant and phase.",
            labels=["tenant", "phase"],
        )
        tokens = CounterMetricFamily(
            PREFIX + "tenant_tokens",
            "Tokens, by tenant and kind; cached ones are part of prompt.",
            labels=["tenant", "kind"],
        )
        requests = CounterMetricFamily(PREFIX + "tenant_requests", "Requests, by tenant.", labels=["tenant"])
        for tenant, account in ledger.accounts.items():
            seconds.add_metric([tenant, "prefill"], account.prefill_s)
            seconds.add_metric([tenant, "decode"], account.decode_s)
            tokens.add_metric([tenant, "prompt"], account.prompt_tokens)
            tokens.add_metric([tenant, "cached"], account.cached_tokens)
            tokens.add_metric([tenant, "generation"], account.generation_tokens)
            requests.add_metric([tenant], account.requests)
        yield from (seconds, tokens, requests)
        price = ledger.prices.usd_per_hour
        if price is None:
            return
        yield _gauge("price_usd_per_hour", "The stated price of this machine.", price)
        cost = CounterMetricFamily(
            PREFIX + "cost_usd", "Cost of engine time, by tenant and phase.", labels=["tenant", "phase"]
        )
        million = GaugeMetricFamily(
            PREFIX + "cost_per_million_tokens_usd",
            "Cost of engine time per million tokens since the start, idle time not included.",
            labels=["tenant", "direction"],
        )
        for tenant, account in ledger.accounts.items():
            cost.add_metric([tenant, "prefill"], ledger.usd(account.prefill_s) or 0.0)
            cost.add_metric([tenant, "decode"], ledger.usd(account.decode_s) or 0.0)
            for direction, value in ledger.per_million(account).items():
                million.add_metric([tenant, direction], value)
        yield from (cost, million)
        wall_s = ledger.wall_s
        yield _counter(
            "wall_cost_usd", "Cost of the machine since the start, busy or idle.", ledger.usd(wall_s) or 0.0
        )
        idle_s = max(wall_s - ledger.used_s, 0.0)
        yield _counter("idle_cost_usd", "Of that, the time that no request used.", ledger.usd(idle_s) or 0.0)

    def _processes(self) -> Iterator[Metric]:
        memory = GaugeMetricFamily(
            PREFIX + "process_resident_memory_bytes", "Resident memory.", labels=["process"]
        )
        files = GaugeMetricFamily(PREFIX + "process_open_fds", "Open file descriptors.", labels=["process"])
        cpu = CounterMetricFamily(PREFIX + "process_cpu_seconds", "User and system time.", labels=["process"])
        for name, process in (("server", self._server), ("engine", _process(self._engine_pid()))):
            if process is None:
                continue
            try:
                with process.oneshot():
                    rss, fds, times = process.memory_info().rss, process.num_fds(), process.cpu_times()
            except psutil.Error:
                continue
            memory.add_metric([name], rss)
            files.add_metric([name], fds)
            cpu.add_metric([name], times.user + times.system)
        yield from (memory, files, cpu)
        yield _gauge("server_tasks", "Tasks of the server's event loop.", len(_tasks()))

    def _gpu_metrics(self) -> Iterator[Metric]:
        power = GaugeMetricFamily(PREFIX + "gpu_power_watts", "Power draw.", labels=["gpu", "uuid"])
        used = GaugeMetricFamily(PREFIX + "gpu_memory_used_bytes", "Memory in use.", labels=["gpu", "uuid"])
        own = GaugeMetricFamily(
            PREFIX + "gpu_process_memory_bytes", "Memory that the engine holds.", labels=["gpu", "uuid"]
        )
        total = GaugeMetricFamily(
            PREFIX + "gpu_memory_total_bytes", "Memory of the GPU.", labels=["gpu", "uuid"]
        )
        load = GaugeMetricFamily(
            PREFIX + "gpu_utilization_ratio",
            "Part of the last second with a kernel running.",
            labels=["gpu", "uuid"],
        )
        energy = CounterMetricFamily(
            PREFIX + "gpu_energy_joules", "Energy since the model was loaded.", labels=["gpu", "uuid"]
        )
        joules: list[float | None] = []
        pid = self._engine_pid()
        for meter in self._gpus:
            reading = meter.read(() if pid is None else (pid,))
            labels = [str(reading.index), reading.uuid]
            for family, value in (
                (power, reading.power_w),
                (used, reading.memory_used_bytes),
                (own, reading.process_memory_bytes),
                (total, reading.memory_total_bytes),
                (load, reading.utilization),
                (energy, reading.energy_j),
            ):
                if value is not None:
                    family.add_metric(labels, value)
            joules.append(reading.energy_j)
        yield from (family for family in (power, used, own, total, load, energy) if family.samples)
        measured = [j for j in joules if j is not None]
        if len(measured) < len(joules):
            return  # the cost of some of the GPUs is not the cost
        cost = self._metrics.ledger.energy_usd(sum(measured))
        if cost is not None:
            yield _counter("energy_cost_usd", "Cost of the measured energy at the stated price.", cost)

    # -- vLLM's -------------------------------------------------------------------------------------------------------

    def _vllm(self) -> Iterator[Metric]:
        labels = {"model_name": self._model, "engine": "0"}
        ours = {m.name.removeprefix(PREFIX): m for m in (*self._engine(), *self._requests())}
        for name, our_name in _VLLM_GAUGES.items():
            if our_name in ours:
                yield _labelled(GaugeMetricFamily, name, ours[our_name], labels)
        for name, our_name in _VLLM_COUNTERS.items():
            yield _labelled(CounterMetricFamily, name, ours[our_name], labels)
        for our_name in ("prompt_tokens", "generation_tokens"):
            yield _labelled(CounterMetricFamily, f"vllm:{our_name}", ours[our_name], labels)
        success = CounterMetricFamily(
            "vllm:request_success", "Sequences that ended, by reason.", labels=[*labels, "finished_reason"]
        )
        for reason in ("stop", "length", "abort"):
            success.add_metric([*labels.values(), reason], self._metrics.finished[reason])
        yield success
        attributes = {name: attribute for name, _, attribute in _HISTOGRAMS}
        for name, our_name in _VLLM_HISTOGRAMS.items():
            text = ours[our_name].documentation
            yield _histogram(name, text, getattr(self._metrics, attributes[our_name]), labels)


def _gauge(name: str, text: str, value: float, labels: dict[str, str] | None = None) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, text, labels=list(labels or {}))
    family.add_metric(list((labels or {}).values()), value)
    return family


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(PREFIX + name, text, value=value)


def _histogram(name: str, text: str, histogram: Histogram, labels: dict[str, str] | None = None) -> Metric:
    family = HistogramMetricFamily(name, text, labels=list(labels or {}))
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip((*map(_bound, histogram.buckets), "+Inf"), histogram.counts, strict=True):
        total += count
        buckets.append((bound, total))
    family.add_metric(list((labels or {}).values()), buckets, histogram.sum)
    return family


def _bound(value: float) -> str:
    return str(float(value))


def _labelled(
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
    name: str,
    source: Metric,
    labels: dict[str, str],
) -> Metric:
    """The only sample of `source` under another name and with labels."""
    family = kind(name, source.documentation, labels=list(labels))
    family.add_metric(list(labels.values()), source.samples[0].value)
    return family


def _tasks() -> set[asyncio.Task[Any]]:
    try:
        return asyncio.all_tasks()
    except RuntimeError:  # read outside the event loop
        return set()


def _process(pid: int | None) -> psutil.Process | None:
    if pid is None:
        return None
    try:
        return psutil.Process(pid)
    except psutil.Error:
        return None
