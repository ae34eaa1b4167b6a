"""TEST FIXTURE, not a measurement: a results folder with made-up, labelled records that exercise the whole report.

Every figure here is invented so that each rule of the report meets a case: a lever that pays, one that slows, one
that cannot be told apart, one that crashes, one that breaks the quality gate, a baseline that does not stream.
Nothing outside the tests may read it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from inferoptim.records.schema import (
    Ceilings,
    ConfigurationRecord,
    Environment,
    Interval,
    MetricSummary,
    QualityRecord,
    Record,
    RequestRecord,
    RunRecord,
    Summary,
    TelemetrySample,
)

NAME = "TEST-FIXTURE-not-a-measurement"
CASES = (("guide@1", 1), ("guide@32", 32), ("chat@32", 32))
RUNS, WARMUPS, TOKENS = 4, 1, 64
# config_id: (invented tokens/s by case, half-width of the interval as a share)
RATES: dict[str, tuple[tuple[float, float, float], float]] = {
    "transformers-sequential": ((17.5, 17.4, 17.1), 0.02),
    "transformers-static": ((17.6, 203.0, 150.0), 0.03),
    "engine-off": ((27.0, 240.0, 171.0), 0.02),
    "+quantization": ((58.1, 330.0, 236.0), 0.02),
    "+in_flight_batching": ((58.0, 333.0, 344.0), 0.03),
    "+chunked_prefill": ((57.8, 329.0, 347.0), 0.14),
    "+paged_kv": ((57.5, 352.0, 371.0), 0.02),
    "+compiled_step": ((96.4, 441.0, 462.0), 0.02),
    "+speculative": ((112.0, 402.0, 419.0), 0.02),
}
LEVERS = (
    "quantization",
    "in_flight_batching",
    "chunked_prefill",
    "paged_kv",
    "prefix_caching",
    "kv_quantization",
    "compiled_step",
    "speculative",
)
FAILED: dict[str, tuple[str, str]] = {
    "+prefix_caching": ("failed", "the worker process died with signal 9 (out of memory?); see worker.log"),
    "+kv_quantization": ("failed_quality", "KL of 0.081 nats is above the threshold of 0.050"),
}


def configurations() -> tuple[ConfigurationRecord, ...]:
    shared: dict[str, Any] = {"load_s": 2.4, "weight_bytes": 269_000_000}
    kv: dict[str, Any] = {"kv_capacity_bytes": 188_743_680, "kv_capacity_tokens": 8192}
    rungs = [
        ConfigurationRecord(
            config_id="transformers-sequential", label="transformers, one request at a time", target="transformers", settings={},
            status="ok", **shared,
        ),
        ConfigurationRecord(
            config_id="transformers-static", label="transformers, static batch", target="transformers", settings={},
            previous="transformers-sequential", is_baseline=True, status="ok", **shared,
        ),
        ConfigurationRecord(
            config_id="engine-off", label="engine, levers off", target="engine", settings={}, previous="transformers-static",
            status="ok", **shared, **kv,
        ),
    ]  # fmt: skip
    on: list[str] = []
    below = "engine-off"
    for lever in LEVERS:
        config_id = f"+{lever}"
        status, error = FAILED.get(config_id, ("ok", None))
        on.append(lever)
        rungs.append(
            ConfigurationRecord(
                config_id=config_id, label=f"+ {lever.replace('_', ' ')}", target="engine", settings={}, levers=tuple(on),
                added_lever=lever, previous=below, status=status, error=error, **shared, **kv,
            )
        )  # fmt: skip
        if status == "ok":
            below = config_id
        else:
            on.remove(lever)
    return tuple(rungs)


def interval(value: float, share: float, n: int = RUNS) -> Interval:
    return Interval(value=value, low=value * (1 - share), high=value * (1 + share), n=n)


def metrics() -> tuple[MetricSummary, ...]:
    found = []
    for column, (workload, concurrency) in enumerate(CASES):
        for config in configurations():
            if config.config_id not in RATES:
                found.append(
                    MetricSummary(
                        config_id=config.config_id, workload=workload, concurrency=concurrency, runs=0
                    )
                )
                continue
            rates, share = RATES[config.config_id]
            rate, base = rates[column], RATES["transformers-static"][0][column]
            previous = RATES[config.previous][0][column] if config.previous else None
            streams = config.target == "engine"
            e2e = concurrency * TOKENS / rate
            ratio = interval(rate / previous, share * 1.4) if previous else None
            found.append(
                MetricSummary(
                    config_id=config.config_id,
                    workload=workload,
                    concurrency=concurrency,
                    runs=RUNS,
                    output_tokens_per_s=interval(rate, share),
                    requests_per_s=interval(rate / TOKENS, share),
                    ttft_s={"p50": interval(e2e * 0.08, share)} if streams else {},
                    tpot_s={"p50": interval(e2e * 0.92 / (TOKENS - 1), share)} if streams else {},
                    e2e_s={
                        "p50": interval(e2e, share),
                        **({"p95": interval(e2e * 1.2, share)} if concurrency > 1 else {}),
                    },
                    peak_rss_bytes=1_180_000_000,
                    mbu=min(rate / 160, 0.6),
                    mfu=0.0004 * rate,
                    share_of_possible=rate / (180 if concurrency == 1 else 2400),
                    floor_s=e2e * rate / (180 if concurrency == 1 else 2400),
                    cost_per_million_output_tokens=interval(0.08 / rate / 3600 * 1e6, share),
                    cost_index=interval(100 * base / rate, share),
                    speedup_vs_baseline=None if config.is_baseline else interval(rate / base, share * 1.4),
                    speedup_vs_previous=ratio,
                    separated_from_previous=None if ratio is None else ratio.low > 1 or ratio.high < 1,
                )
            )
    return tuple(found)


def quality() -> tuple[QualityRecord, ...]:
    found = [
        QualityRecord(
            config_id="engine-off", kind="logits_vs_transformers", passed=True, threshold={"max_abs_logit_error": 1e-3},
            values={"max_abs_logit_error": Interval(value=3.1e-5, low=3.1e-5, high=3.1e-5, n=1)},
        )
    ]  # fmt: skip
    for lever in LEVERS:
        config_id = f"+{lever}"
        if config_id == "+prefix_caching":
            continue
        drift = 0.081 if config_id == "+kv_quantization" else 0.012
        values = {
            "perplexity_ratio": interval(1.0043, 0.002, 12),
            "kl_nats": interval(drift, 0.1, 12),
            "top1_agreement": interval(0.962, 0.008, 12),
        }
        found.append(
            QualityRecord(
                config_id=config_id, kind="distribution", passed=drift < 0.05,
                threshold={"perplexity_ratio": 1.02, "kl_nats": 0.05, "top1_agreement": 0.93}, values=values,
                by_language={"en": values, "fr": {**values, "kl_nats": interval(drift * 1.3, 0.12, 6)}},
                detail="" if drift < 0.05 else FAILED[config_id][1],
            )
        )  # fmt: skip
    return tuple(found)


def environment() -> Environment:
    return Environment(
        hostname_hash="f1f2f3",
        os="Fixture OS 1.0",
        cpu="Fixture CPU (test records)",
        cores=2,
        memory_bytes=16 * 1024**3,
        versions={"inferoptim": "0.0.0", "torch": "0.0.0"},
        kernels={"cpu": "fixture"},
        git_commit="0000000000000000000000000000000000000000",
        git_dirty=True,
        model="fixture-model",
        model_revision="r1",
        ceilings=Ceilings(memory_read_bytes_per_s=45e9, gemm_flops_per_s={"bfloat16": 4.1e11}, num_threads=2),
        command="inferoptim bench --name TEST-FIXTURE-not-a-measurement",
        started_at="2000-01-01T00:00:00Z",
    )


def summary(**changes: Any) -> Summary:
    fields: dict[str, Any] = {
        "name": NAME,
        "baseline": "transformers-static",
        "price_per_hour": 0.08,
        "price_source": "a made-up price for the tests",
        "configurations": configurations(),
        "metrics": metrics(),
        "quality": quality(),
        "warnings": ("a note from the bench",),
    }
    return Summary(**{**fields, **changes})


def runs() -> list[RunRecord]:
    found = []
    for column, (workload, concurrency) in enumerate(CASES):
        for config_id, (rates, _) in RATES.items():
            for index in range(WARMUPS + RUNS):
                warm = index < WARMUPS
                found.append(
                    RunRecord(
                        config_id=config_id, workload=workload, run_index=index if warm else index - WARMUPS, warmup=warm,
                        order_index=len(found), started_at_s=float(len(found)), wall_s=concurrency * TOKENS / rates[column],
                        num_requests=concurrency, num_failed=0, prompt_tokens=97 * concurrency, output_tokens=TOKENS * concurrency,
                        peak_rss_bytes=1_180_000_000, cpu_s=1.8 * concurrency * TOKENS / rates[column],
                    )
                )  # fmt: skip
    return found


def requests() -> list[RequestRecord]:
    draw = random.Random(7)
    found = []
    for column, (workload, concurrency) in enumerate(CASES):
        for config_id, (rates, _) in RATES.items():
            for index in range(RUNS):
                wall = concurrency * TOKENS / rates[column]
                for number in range(concurrency):
                    streams = not config_id.startswith("transformers")
                    end = wall * (draw.uniform(0.55, 1.0) if streams else 1.0)
                    found.append(
                        RequestRecord(
                            config_id=config_id, workload=workload, run_index=index, request_id=f"r{number}", arrival_s=0.0, sent_s=0.0,
                            first_token_s=end * 0.08 if streams else None, finished_s=end, prompt_tokens=97, output_tokens=TOKENS,
                        )
                    )  # fmt: skip
    return found


def telemetry() -> list[TelemetrySample]:
    found = []
    for workload, concurrency in CASES:
        for config_id, (rates, _) in RATES.items():
            wall = concurrency * TOKENS / rates[1]
            for index in range(RUNS):
                for step in range(24):
                    share = step / 23
                    used = int(concurrency * (97 + TOKENS * share))
                    paged = "paged" in config_id or config_id in ("+compiled_step", "+speculative")
                    held = -(-used // 16) * 16 + concurrency * 8 if paged else concurrency * 256
                    meter = not config_id.startswith("transformers")
                    found.append(
                        TelemetrySample(
                            config_id=config_id, workload=workload, run_index=index, time_s=wall * share, rss_bytes=1_170_000_000,
                            cpu_percent=180.0, kv_used_tokens=used if meter else None, kv_reserved_tokens=held if meter else None,
                        )
                    )  # fmt: skip
    return found


def write_folder(
    folder: Path,
    of_summary: Summary | None = None,
    *,
    of_environment: Environment | None = None,
    of_requests: Iterable[Record] | None = None,
    of_telemetry: Iterable[Record] | None = None,
    of_runs: Iterable[Record] | None = None,
    economics: dict[str, Any] | None = None,
) -> Path:
    """Write a results folder; what is not given comes from the functions above."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(
        json.dumps({"name": NAME, "design": "ladder", "seed": 0}), encoding="utf-8"
    )
    (folder / "environment.json").write_text(
        (of_environment or environment()).model_dump_json(), encoding="utf-8"
    )
    (folder / "summary.json").write_text((of_summary or summary()).model_dump_json(), encoding="utf-8")
    for name, records in (
        ("runs", runs() if of_runs is None else of_runs),
        ("requests", requests() if of_requests is None else of_requests),
        ("telemetry", telemetry() if of_telemetry is None else of_telemetry),
    ):
        lines = "".join(record.model_dump_json() + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    if economics is not None:
        (folder / "economics.json").write_text(json.dumps(economics), encoding="utf-8")
    return folder
