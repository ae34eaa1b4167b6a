"""What /metrics says after known work: exact counts, and money that adds up."""

from __future__ import annotations

from collections import defaultdict

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server import MODEL, RunningServer

Samples = dict[str, dict[tuple[str, ...], float]]


def scrape(http: httpx.Client) -> Samples:
    """Samples by name, then by label values (in the order of the label names)."""
    http.get("/health", params={"deep": "1"})  # the engine has answered, so its last counters are here
    result: Samples = defaultdict(dict)
    for family in text_string_to_metric_families(http.get("/metrics").text):
        for sample in family.samples:
            result[sample.name][tuple(sample.labels[k] for k in sorted(sample.labels))] = sample.value
    return result


def test_counts_latencies_and_money_add_up(server: RunningServer) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as http:
        before = scrape(http)
        prompt = "a prompt that is long enough to fill some blocks of the cache, " * 2
        usages = [
            http.post(
                "/v1/completions",
                json={"model": MODEL, "prompt": prompt, "max_tokens": 7, "ignore_eos": True, "user": "ann"},
            ).json()["usage"]
            for _ in range(3)
        ]
        refused = http.post("/v1/completions", json={"model": MODEL, "prompt": "x", "suffix": "y"})
        assert refused.status_code == 400
        after = scrape(http)

    def grown(name: str, *labels: str) -> float:
        return after[f"inferoptim_{name}"][labels] - before[f"inferoptim_{name}"].get(labels, 0.0)

    prompt_tokens = sum(u["prompt_tokens"] for u in usages)
    cached = sum(u["prompt_tokens_details"]["cached_tokens"] for u in usages)
    assert grown("prompt_tokens_total") == prompt_tokens
    assert grown("generation_tokens_total") == 21
    assert grown("prefix_cache_queries_total") == prompt_tokens
    assert grown("prefix_cache_hits_total") == grown("prompt_tokens_cached_total") == cached > 0
    assert grown("requests_finished_total", "length") == 3
    assert grown("http_responses_total", "/v1/completions", "200") == 3
    assert grown("http_responses_total", "/v1/completions", "400") == 1
    for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time", "request_decode_time"):
        assert grown(f"{name}_seconds_count") == 3
    assert grown("inter_token_latency_seconds_count") == 3 * 6
    assert grown("scheduled_tokens_total") == prompt_tokens - cached + 3 * 6, "cached ones are not computed"
    busy = grown("engine_busy_seconds_total")
    shares = {p: grown("tenant_engine_seconds_total", p, "ann") for p in ("prefill", "decode")}
    assert sum(shares.values()) == pytest.approx(busy), "every second of the engine is somebody's"
    assert min(shares.values()) > 0
    for phase, seconds in shares.items():
        assert grown("cost_usd_total", phase, "ann") == pytest.approx(seconds * 2 / 3600)
    million = after["inferoptim_cost_per_million_tokens_usd"][("output", "ann")]
    assert million == pytest.approx(shares["decode"] * 2 / 3600 / 21 * 1e6)
    wall, idle = (after[f"inferoptim_{n}_cost_usd_total"][()] for n in ("wall", "idle"))
    assert 0 < idle < wall
    assert after["inferoptim_process_resident_memory_bytes"].keys() == {("server",), ("engine",)}

    for theirs, ours in (
        ("vllm:prompt_tokens_total", "inferoptim_prompt_tokens_total"),
        ("vllm:num_requests_running", "inferoptim_requests_running"),
        ("vllm:kv_cache_usage_perc", "inferoptim_kv_cache_usage_ratio"),
        ("vllm:e2e_request_latency_seconds_sum", "inferoptim_e2e_request_latency_seconds_sum"),
    ):
        assert after[theirs][("0", MODEL)] == after[ours][()]
    assert after["vllm:request_success_total"][("0", "length", MODEL)] >= 3
