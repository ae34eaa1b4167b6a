"""The guide's claims: all there, each judged by a function, figures by hand; the lint flags 5.2 and passes real rows."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from inferoptim.cli.main import main
from inferoptim.economics.claims import CLAIMS, Evidence, Verdict, examine_all
from inferoptim.economics.claims.levers import expected_speedup, guide_5_2
from inferoptim.economics.claims.method import runs_for_upper_bound
from inferoptim.economics.lint import Row, compare_rows, lint_row
from inferoptim.economics.roofline import find_shape
from inferoptim.hardware.peaks import device_peaks

# Read off guide/CLAIMS.md by hand: what is right, right under conditions, wrong; the rest needs a measurement.
HOLDS = {3, 9, 24, 29}
WRONG = {2, 4, 6, 13, 14, 16, 17, 19, 30, 32, 33, 34, 40, 41, 44, 46, 47, 48, 50, 52}
MEASURED = {12, 15, 20, 21, 22, 25, 26, 27, 28, 35}


@pytest.fixture(scope="module")
def rows():
    return {row["number"]: row for row in examine_all(Evidence())}


def test_every_claim_is_there_with_a_function_and_no_measurement_is_invented(rows):
    assert set(rows) == set(range(1, 55)) == set(CLAIMS)
    for row in rows.values():
        assert row["function"].startswith("inferoptim.economics.claims.")
        assert len(row["statement"]) > 10
        assert row["measured_here"] == "not measured"  # nothing was given to measure with


def test_verdicts_are_those_of_the_table(rows):
    verdict = {number: row["verdict"] for number, row in rows.items()}
    assert {n for n, v in verdict.items() if v == Verdict.HOLDS.value} == HOLDS
    assert {n for n, v in verdict.items() if v == Verdict.WRONG.value} == WRONG
    assert {n for n, v in verdict.items() if v == Verdict.NOT_MEASURED.value} == MEASURED


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (3, "14.4"), (4, "126.1 k$"), (5, "261 k$"), (5, "322 k$"), (6, "55.04"), (7, "482 k$"), (8, "+117%"), (8, "+282%"),
        (10, "+3.1%"), (10, "+3.9%"), (11, "−37% to −81%"), (14, "723"), (23, "0.33 MB"), (23, "2.62"), (24, "524288 B"),
        (24, "524 MB"), (29, "2.0 GiB"), (34, "2.60×"), (36, "−25.7%"), (37, "−78.3%"), (40, "0.821 s"), (40, "63 steps"),
        (41, "543 and 709"), (42, "2.41, 3.15"), (43, "n ≥ 59"), (43, "n ≥ 299"), (47, "48,000 €"), (48, "−60%"), (48, "+67%"),
        (51, "51.5 GB"), (51, "13.5 GB"),
    ],
)  # fmt: skip
def test_the_right_statement_carries_the_recomputed_figure(rows, number, says):
    assert says in rows[number]["statement"]


def test_order_statistics_by_hand():
    # The largest of n exceeds the 95th percentile with 1 - 0.95^n: 0.95^58 = 0.0510, 0.95^59 = 0.0485.
    assert 0.95**58 > 0.05 > 0.95**59
    assert runs_for_upper_bound(0.95) == 59


def test_speculative_speedup_by_hand():
    # One draft token accepted half the time at no cost: 1.5 tokens a step.
    assert expected_speedup(0.5, 1, 0.0) == pytest.approx(1.5)
    # A draft that costs as much as the target and is never right halves the speed.
    assert expected_speedup(0.0, 1, 1.0) == pytest.approx(0.5)


def test_measured_tokens_stand_beside_the_guide(tmp_path, capsys):
    from tests.bpe import save_bpe_tokenizer

    english = "The lease runs for three years. The tenant pays on the first day of the month.\n" * 20
    french = "Le bail court sur trois ans. Le locataire paie le premier jour du mois.\n" * 20
    for name, text in (("en.txt", english), ("fr.txt", french)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    save_bpe_tokenizer(tmp_path)
    words = [
        "claims",
        "21",
        "26",
        "--tokenizer",
        str(tmp_path),
        "--text-en",
        str(tmp_path / "en.txt"),
        "--text-fr",
        str(tmp_path / "fr.txt"),
        "--json",
    ]
    assert main(words) == 0
    found = {row["number"]: row for row in json.loads(capsys.readouterr().out)["claims"]}
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    counts = [len(tokenizer.encode(text, add_special_tokens=False).ids) for text in (english, french)]
    assert list(found[26]["figures"].values()) == [pytest.approx(counts[1] / counts[0] - 1)]
    assert found[21]["measured_here"] != "not measured"


def test_a_run_puts_its_kv_bytes_beside_the_formula():
    evidence = Evidence(
        summary={"configurations": [{"config_id": "engine-off", "kv_capacity_bytes": 46_080_000, "kv_capacity_tokens": 2000}]},
        environment={"model_shape": {"num_layers": 30, "num_heads": 9, "num_kv_heads": 3, "head_dim": 64}}, run="r",
    )  # fmt: skip
    # 23 040 B a token: 2 B an element with 3 KV heads (2 × 30 × 3 × 64), as the engine allocates; not with 9.
    measured = CLAIMS[23].as_dict(evidence)["measured_here"]
    assert "23,040 B a token" in measured
    assert "2 B an element with 3 KV heads, 0.667 with all 9" in measured


# --- lint -----------------------------------------------------------------------------------------------------


def test_the_guides_5_2_is_flagged_and_the_bound_is_named(capsys):
    assert main(["lint", "--guide-5.2", "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["possible"] is False
    assert result["equal_work"] is False
    assert all("latency: memory bandwidth" in row["broken"] for row in result["rows"])


def test_the_floor_of_5_2_by_hand():
    # 22 layers: 2048 × (2048 + 2 × 256) + 2048² + 3 × 2048 × 5632 = 44.04 M each; head 65.5 M: 1.0344 G × 2 B / 504.2 GB/s.
    body = 22 * (2048 * (2048 + 2 * 256) + 2048 * 2048 + 3 * 2048 * 5632)
    step = (body + 32000 * 2048) * 2 / 504.2e9
    check = next(c for c in lint_row(guide_5_2()[1]).checks if c.name == "latency: memory bandwidth")
    assert check.limit == pytest.approx(200 * step)
    assert int(0.2603 / step) == 63


# Measured on an H100 SXM with vLLM 0.25.1 before the project began: total seconds of n × (in + out). All must pass.
REAL = [
    ("TinyLlama-1.1B", "bf16", 1, 100, 200, 0.435), ("TinyLlama-1.1B", "bf16", 32, 100, 200, 0.625),
    ("TinyLlama-1.1B", "bf16", 256, 100, 200, 1.49), ("TinyLlama-1.1B", "bf16", 256, 1000, 1000, 7.91),
    ("Llama-3.1-8B", "bf16", 1, 100, 200, 1.33), ("Llama-3.1-8B", "bf16", 256, 1000, 1000, 36.4),
    ("Llama-3.1-8B", "fp8", 1, 100, 200, 0.89), ("Llama-3.1-8B", "fp8", 1024, 100, 200, 8.24),
]  # fmt: skip


@pytest.mark.parametrize(("model", "precision", "batch", "prompt", "output", "seconds"), REAL)
def test_real_rows_are_possible_and_ten_times_faster_is_not(model, precision, batch, prompt, output, seconds):
    row = Row(
        find_shape(model), precision, device_peaks("H100 SXM"), output, prompt, seconds, batch * output / seconds, concurrency=batch
    )  # fmt: skip
    assert lint_row(row).possible
    faster = replace(row, latency_s=seconds / 10, tokens_per_s=batch * output / seconds * 10)
    assert lint_row(faster).broken


def test_a_plausible_row_passes_on_the_command_line(capsys):
    words = [
        "lint",
        "--model",
        "TinyLlama-1.1B",
        "--precision",
        "fp16",
        "--card",
        "RTX 4070",
        "--input-tokens",
        "100",
    ]
    assert (
        main(
            [
                *words,
                "--output-tokens",
                "200",
                "--latency-ms",
                "1100",
                "--throughput",
                "181",
                "--concurrency",
                "1",
            ]
        )
        == 0
    )
    assert "possible" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "bound"),
    [
        ({"tokens_per_s": 1e6}, "throughput: memory bandwidth"),
        ({"tokens_per_s": 60_000.0, "input_tokens": 2000}, "throughput: arithmetic"),
        ({"latency_s": 2.0, "tokens_per_s": 1000.0, "concurrency": 2}, "consistency: throughput × latency"),
        ({"memory_bytes": 1e9}, "memory"),
        ({"shape": find_shape("Llama-2-70B")}, "memory"),
        ({"latency_s": 0.9, "input_tokens": 100_000}, "latency: arithmetic"),
    ],
)
def test_each_bound_is_named_when_broken(change, bound):
    row = Row(find_shape("Llama-3.1-8B"), "bf16", device_peaks("H100 SXM"), 100, 100, 2.0)
    assert bound in [check.name for check in lint_row(replace(row, **change)).broken]


def test_speculative_decoding_may_take_fewer_steps():
    row = Row(find_shape("Llama-3.1-8B"), "bf16", device_peaks("H100 SXM"), 200, 10, 0.5)
    assert not lint_row(row).possible
    assert lint_row(replace(row, tokens_per_step=3.0)).possible


def test_equal_work_needs_two_rows_that_say_both():
    one = guide_5_2()[0]
    assert compare_rows((one,)) is None
    check = compare_rows((one, replace(one, latency_s=one.latency_s / 2, tokens_per_s=one.tokens_per_s * 2)))
    assert check is not None
    assert check.kept
