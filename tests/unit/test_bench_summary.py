"""summary.json from raw records: rates, ratios, prices by hand; what failed has none of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from inferoptim.bench.plan import make_plan
from inferoptim.bench.summary import build_summary
from inferoptim.records.reader import read_run
from inferoptim.records.schema import (
    Ceilings,
    ConfigurationRecord,
    Environment,
    Interval,
    MetricSummary,
    QualityRecord,
    RequestRecord,
    RunRecord,
    Summary,
)
from inferoptim.records.writer import RunWriter

SHAPE = {
    "hidden_size": 4, "intermediate_size": 8, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "head_dim": 2,
    "vocab_size": 10,
}  # fmt: skip
WALLS = {"base": (2.0, 2.0, 2.0), "fast": (1.0, 1.0, 1.0), "wrong": (0.1, 0.1, 0.1), "same": (2.0, 1.9, 2.1)}


def configuration(config_id: str, **fields: object) -> ConfigurationRecord:
    return ConfigurationRecord(
        config_id=config_id,
        label=config_id,
        target="engine",
        settings={"dtype": "bfloat16"},
        status="ok",
        **fields,
    )


def folder(path: Path) -> Path:
    writer = RunWriter(path)
    writer.plan(make_plan({"model": "m", "price_per_hour": 3.6, "price_source": "a test"}))
    writer.environment(
        Environment(
            hostname_hash="h", os="o", cpu="c", cores=1, memory_bytes=1, model="m", model_shape=SHAPE,
            ceilings=Ceilings(memory_read_bytes_per_s=1e4, gemm_flops_per_s={"bfloat16": 1e30}),
        )
    )  # fmt: skip
    writer.configuration(configuration("base", is_baseline=True))
    for config_id in ("fast", "wrong", "same"):
        writer.configuration(configuration(config_id, previous="base", added_lever="paged_kv"))
    for config_id, walls in WALLS.items():
        for index, wall in enumerate(walls):
            run = RunRecord(
                config_id=config_id, workload="guide@2", run_index=index, warmup=False, order_index=0, started_at_s=0.0, wall_s=wall,
                num_requests=2, num_failed=0, prompt_tokens=20, output_tokens=100,
            )  # fmt: skip
            requests = [
                RequestRecord(
                    config_id=config_id, workload="guide@2", run_index=index, request_id=f"r{i}", arrival_s=0.0, sent_s=0.0,
                    first_token_s=wall * 0.02, finished_s=wall, token_times_s=(wall * 0.02, wall), prompt_tokens=10, output_tokens=50,
                )
                for i in range(2)
            ]  # fmt: skip
            writer.run(run, requests)
    writer.quality(
        QualityRecord(
            config_id="wrong", kind="distribution", passed=False, detail="kl_nats of 0.2 is above the threshold",
            values={"kl_nats": Interval(value=0.2, low=0.1, high=0.3, n=4)},
        )
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    run = read_run(folder(tmp_path_factory.mktemp("run")))
    return build_summary(run, make_plan(run.plan), {"guide@2": 2}, {"schedule": "interleaved"})


def metric(summary: Summary, config_id: str) -> MetricSummary:
    return next(m for m in summary.metrics if m.config_id == config_id)


def test_rates_ratios_and_money_by_hand(summary: Summary) -> None:
    base, fast = metric(summary, "base"), metric(summary, "fast")
    assert base.output_tokens_per_s is not None
    assert base.output_tokens_per_s.value == pytest.approx(50.0)
    assert base.cost_index is not None
    assert base.cost_index.value == pytest.approx(100.0)
    assert base.speedup_vs_baseline is None
    assert fast.speedup_vs_baseline is not None
    assert fast.speedup_vs_baseline.value == pytest.approx(2.0)
    assert fast.separated_from_previous is True
    assert fast.cost_index is not None
    assert fast.cost_index.value == pytest.approx(50.0)
    # 3.6 an hour is 0.001 a second; 100 tokens a second → 10 per million
    assert fast.cost_per_million_output_tokens is not None
    assert fast.cost_per_million_output_tokens.value == pytest.approx(10.0)
    assert fast.ttft_s["p50"].value == pytest.approx(0.02)
    assert fast.tpot_s["p50"].value == pytest.approx((1.0 - 0.02) / 49)
    assert "p95" not in fast.e2e_s  # six requests allow no tail


def test_the_dearer_end_of_a_price_is_the_slower_end_of_the_rate(summary: Summary) -> None:
    same = metric(summary, "same")
    rate, cost = same.output_tokens_per_s, same.cost_per_million_output_tokens
    assert rate is not None
    assert cost is not None
    assert rate.low < rate.value < rate.high
    assert cost.low == pytest.approx(1000 / rate.high)
    assert cost.high == pytest.approx(1000 / rate.low)
    assert same.separated_from_previous is False


def test_wrong_output_has_no_speed_no_index_no_price(summary: Summary) -> None:
    wrong = metric(summary, "wrong")
    assert wrong == MetricSummary(config_id="wrong", workload="guide@2", concurrency=2, runs=0)
    record = next(c for c in summary.configurations if c.config_id == "wrong")
    assert record.status == "failed_quality"
    assert record.error == "kl_nats of 0.2 is above the threshold"


def test_share_of_possible_is_floor_over_measured_time(summary: Summary) -> None:
    fast = metric(summary, "fast")
    assert fast.floor_s is not None
    assert fast.share_of_possible == pytest.approx(fast.floor_s / 1.0)
    weights = 2 * (288 + 40)  # bytes of body and head in bfloat16
    assert fast.floor_s == pytest.approx((weights * 50 + 2 * 49 * (10 + 25) * 16) / 1e4)
    assert fast.mbu == pytest.approx(fast.share_of_possible)
