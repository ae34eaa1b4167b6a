"""A results folder priced: caveats beside every doubtful price, goodput from its requests, roi and the report's section."""

from __future__ import annotations

import csv
import io
import json

import pytest

from inferoptim.cli.main import main
from inferoptim.economics.focus import COLUMNS
from inferoptim.records.load_schema import ClientHealth, LoadStage, LoadSummary, MaxRate, Objectives
from inferoptim.records.schema import RunRecord
from inferoptim.report.economics_section import economics_from_run, write_economics
from inferoptim.report.scenario_from_run import scenario_from_run
from inferoptim.report.write_report import write_report
from tests.golden import report_records as fixture

STATED = {"requests_per_day": 200_000, "utilisation": 0.5, "migration_cost": 100, "gpu_hour_price": 0.08}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fixture.write_folder(tmp_path_factory.mktemp("runs") / "fixture")


def asked(capsys, *words: str) -> dict:
    status = main([*words, "--json"])
    said = capsys.readouterr()
    assert status == 0, said.err
    return json.loads(said.out)


def test_cost_of_a_run_by_hand(folder, capsys):
    costs = asked(capsys, "cost", str(folder), "--config", "+compiled_step", "--utilisation", "0.5")["costs"]
    found = next(c for c in costs if c["workload"] == "guide@32")
    # 441 tok/s half of the time at 0.08 an hour: 0.08 / 3600 / 220.5 × 1e6; ± 2 % of throughput is about ∓ 2 % of cost.
    assert found["per_million_output"] == pytest.approx(0.08 / 3600 / 220.5 * 1e6)
    assert found["spread"]["low"] == pytest.approx(found["per_million_output"] / 1.02, rel=2e-3)
    assert found["spread"]["high"] == pytest.approx(found["per_million_output"] / 0.98, rel=2e-3)
    # 97 prompt and 64 output tokens a request: the same bill over 161 tokens instead of 64.
    assert found["per_million_total"] == pytest.approx(found["per_million_output"] * 64 / 161)
    assert found["per_million_input_apart"] is None
    assert found["energy_kwh_per_million_output"] is None
    assert any("not measured" in c for c in found["caveats"])


def test_csv_has_the_interval_in_its_own_columns(folder, capsys):
    assert main(["cost", str(folder), "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["workload"] for row in rows} == {"guide@1", "guide@32", "chat@32"}
    for row in rows:
        assert float(row["low"]) < float(row["EUR per M output"]) < float(row["high"])
        assert row["per M input apart"] == ""


def test_failed_quality_is_priced_only_when_asked_for_by_name_and_with_its_caveat(tmp_path, capsys):
    broken = [
        RunRecord(
            config_id="+kv_quantization", workload="guide@32", run_index=0, warmup=False, order_index=0, started_at_s=0, wall_s=4.0,
            num_requests=32, num_failed=0, prompt_tokens=3104, output_tokens=2048,
        )
    ]  # fmt: skip
    path = fixture.write_folder(tmp_path / "broken", of_runs=[*fixture.runs(), *broken])
    everything = asked(capsys, "cost", str(path))
    assert "+kv_quantization" not in {c["config"] for c in everything["costs"]}
    asked_for = asked(capsys, "cost", str(path), "--config", "+kv_quantization")
    assert asked_for["costs"][0]["per_million_output"] == pytest.approx(0.08 / 3600 / 512 * 1e6)
    assert any("failed quality" in note for note in asked_for["notes"])


def test_too_few_runs_carry_their_caveat_everywhere(tmp_path, capsys):
    single = tuple(m.model_copy(update={"runs": 1}) if m.runs else m for m in fixture.metrics())
    path = fixture.write_folder(tmp_path / "few", fixture.summary(metrics=single))
    assert any("rests on 1 run:" in note for note in asked(capsys, "cost", str(path))["notes"])
    rows = economics_from_run(path)["workloads"][0]["configurations"]
    assert all(any("rests on 1 run:" in c for c in row["caveats"]) for row in rows if row.get("cost"))
    assert any("rests on 1 run:" in note for note in scenario_from_run(path, STATED).notes)


def test_goodput_is_counted_in_the_requests(folder, capsys):
    free = asked(
        capsys, "cost", str(folder), "--config", "engine-off", "--workload", "chat@32", "--slo", "e2e=1000s"
    )
    held = asked(
        capsys, "cost", str(folder), "--config", "engine-off", "--workload", "chat@32", "--slo", "e2e=9s"
    )
    requests = [r for r in fixture.requests() if (r.config_id, r.workload) == ("engine-off", "chat@32")]
    good = sum(r.finished_s - r.arrival_s <= 9 for r in requests)
    assert 0 < good < len(requests)
    ratio = held["costs"][0]["per_million_output"] / free["costs"][0]["per_million_output"]
    assert ratio == pytest.approx(len(requests) / good)
    assert "e2e ≤ 9 s" in held["costs"][0]["at"]


def test_a_target_that_does_not_stream_has_no_cost_under_a_first_token_objective(folder, capsys):
    priced = asked(capsys, "cost", str(folder), "--workload", "chat@32", "--slo", "ttft=100s")
    assert "transformers-static" not in {c["config"] for c in priced["costs"]}
    assert any("transformers-static" in note and "not measured" in note for note in priced["notes"])


def test_a_rate_whose_interval_reaches_zero_has_no_interval_of_cost(tmp_path, capsys):
    # Of four runs one met the objective: the interval of that goodput goes below zero, so cost has no upper end.
    late = [
        r.model_copy(update={"finished_s": r.finished_s + 100}) if r.run_index else r
        for r in fixture.requests()
    ]
    path = fixture.write_folder(tmp_path / "late", of_requests=late)
    priced = asked(
        capsys, "cost", str(path), "--config", "engine-off", "--workload", "chat@32", "--slo", "e2e=50s"
    )
    assert priced["costs"][0]["spread"] is None
    assert any("no upper end" in note for note in priced["notes"])


def stage(name: str, rate: float, goodput: float | None, **changes) -> LoadStage:
    fields = {
        "name": name, "shape": f"open, {rate:g} requests/s", "loop": "open", "offered_per_s": rate, "requests": 100, "succeeded": 100,
        "wall_s": 10.0, "requests_per_s": rate, "output_tokens_per_s": rate * 50, "prompt_tokens_per_s": rate * 200,
        "goodput_per_s": goodput, "client": ClientHealth(cpu_share=0.1, allowed_lag_s=0.01, valid=True),
    }  # fmt: skip
    return LoadStage(**{**fields, **changes})


def load_folder(path, stages, **changes):
    path.mkdir()
    summary = LoadSummary(
        url="http://x", model="m", client_version="1", stages=tuple(stages), objectives=Objectives(ttft_s=0.5), **changes
    )  # fmt: skip
    (path / "load.json").write_text(summary.model_dump_json(), encoding="utf-8")
    return path


def test_a_load_test_is_priced_at_its_goodput(tmp_path, capsys):
    found = MaxRate(
        highest_passed_per_s=4.0,
        lowest_failed_per_s=8.0,
        goodput_per_s=3.9,
        tolerance=0.05,
        probes=("a", "b"),
    )
    path = load_folder(tmp_path / "load", [stage("a", 4.0, 3.9), stage("b", 8.0, 1.0)], max_rate=found)
    priced = asked(capsys, "cost", str(path), "--price-per-hour", "3.6")
    # 3.9 requests/s × 50 tokens at 0.001 a second: 1 000 / 195.
    assert [c["per_million_output"] for c in priced["costs"]] == [pytest.approx(1000 / 195)]
    assert "ttft ≤ 500 ms" in priced["costs"][0]["at"]
    assert any("no interval" in note for note in priced["notes"])


def test_a_load_test_whose_client_was_the_bottleneck_says_so(tmp_path, capsys):
    slow = ClientHealth(cpu_share=0.99, allowed_lag_s=0.01, valid=False, reasons=("its CPU was full",))
    path = load_folder(tmp_path / "load", [stage("a", 4.0, 3.9, client=slow)])
    assert any(
        "its CPU was full" in n for n in asked(capsys, "cost", str(path), "--price-per-hour", "1")["notes"]
    )


def test_a_load_test_where_nothing_met_the_objective_has_no_cost(tmp_path, capsys):
    path = load_folder(tmp_path / "load", [stage("a", 4.0, 0.0)])
    assert main(["cost", str(path), "--price-per-hour", "1"]) == 2
    assert "nothing met the objectives" in capsys.readouterr().err


def test_measured_power_enters_an_owned_node(tmp_path, capsys):
    metered = [r.model_copy(update={"energy_j": 500.0 * r.wall_s}) for r in fixture.runs()]
    path = fixture.write_folder(tmp_path / "metered", of_runs=metered)
    priced = asked(
        capsys, "cost", str(path), "--capex", "262800", "--gpus-per-node", "8", "--kwh-price", "0.1", "--workload", "guide@1"
    )  # fmt: skip
    terms = {t["name"]: t for t in priced["gpu_hour"]["terms"]}
    # 500 W a GPU at 0.10 a kWh is 0.05 an hour and GPU; 262 800 over 3 years and 8 GPUs is 1.25.
    assert terms["power"]["per_gpu_hour"] == pytest.approx(0.05)
    assert "measured" in terms["power"]["basis"]
    assert terms["depreciation"]["per_gpu_hour"] == pytest.approx(1.25)


def test_focus_export_sums_to_the_day(tmp_path, capsys):
    out = tmp_path / "day.csv"
    words = [
        "cost",
        "--offer",
        "runpod-secure-h100",
        "--extras-per-hour",
        "0.01",
        "--gpus",
        "2",
        "--tokens-per-s",
        "1000",
    ]
    assert main([*words, "--focus", str(out)]) == 0
    rows = list(csv.DictReader(out.open(encoding="utf-8")))
    assert tuple(rows[0]) == COLUMNS
    assert sum(float(row["BilledCost"]) for row in rows) == pytest.approx((3.99 + 0.01) * 2 * 24)
    assert {row["ProviderName"] for row in rows} == {"RunPod"}
    assert all("computed, not billed" in row["ChargeDescription"] for row in rows)


def test_roi_of_a_run_uses_what_was_measured(folder):
    scenario = scenario_from_run(folder, STATED, workload="guide@32")
    assert scenario.chosen == "+compiled_step"
    factor = scenario.inputs["factor"]
    # 203 -> 441 tok/s; the paired interval of the speed-up turned upside down.
    assert factor.mode == pytest.approx(203 / 441)
    assert factor.low < factor.mode < factor.high
    assert scenario.inputs["gpu_s_per_m_output"] == pytest.approx(1e6 / 203)
    assert scenario.inputs["output_tokens"] == 64
    assert {c.id for c in scenario.choices} == set(fixture.RATES) - {"transformers-static"}
    assert any("not measured apart" in note for note in scenario.notes)


def test_roi_against_another_baseline_takes_both_intervals(folder):
    scenario = scenario_from_run(
        folder, STATED, workload="guide@32", baseline="engine-off", config="+paged_kv"
    )
    factor = scenario.inputs["factor"]
    assert factor.mode == pytest.approx(240 / 352)
    assert factor.low == pytest.approx(240 * 0.98 / (352 * 1.02))
    assert factor.high == pytest.approx(240 * 1.02 / (352 * 0.98))


def test_roi_on_the_command_line_and_its_page(folder, tmp_path, capsys):
    page = tmp_path / "roi.html"
    words = [f"--set={name}={value}" for name, value in STATED.items() if name != "gpu_hour_price"]
    result = asked(capsys, "roi", str(folder), *words, "--html", str(page), "--lang", "fr")
    figures = result["figures"]
    assert figures["npv"]["low"] <= figures["npv"]["value"] <= figures["npv"]["high"]
    assert "horizon_months" in result["assumed"]
    assert '<html lang="fr">' in page.read_text(encoding="utf-8")


def test_economics_and_claims_stand_in_the_report(tmp_path):
    path = fixture.write_folder(tmp_path / "run")
    write_economics(path)
    economics = json.loads((path / "economics.json").read_text(encoding="utf-8"))
    ladder = economics["workloads"][1]["ladder"]
    assert ladder[0]["index"] == pytest.approx(100)
    assert ladder[-1]["index"] == pytest.approx(100 * 203 / 402)
    measured = {claim["number"]: claim["measured_here"] for claim in economics["claims"]}
    assert "×1.38" in measured[34]  # what quantisation gained at its rung, beside the guide's 2.60
    assert "269 MB" in measured[31]
    for language, word in (("en", "claims, measured here"), ("fr", "mesurées ici")):
        html = write_report(path, language).read_text(encoding="utf-8")
        assert 'id="claims"' in html
        assert word in html
        assert 'href="claims.html"' in html
        assert "no goodput at a service level was measured" in html
    claims = (path / "claims.html").read_text(encoding="utf-8")
    assert claims.count('class="row"') == 54
    assert "http://" not in claims.replace("http://www.w3.org", "")
