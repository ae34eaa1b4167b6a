"""The audit as a whole: levers, workload, page, command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from inferoptim.audit.levers import Facts, lever_records
from inferoptim.audit.lookup import tokens_per_step
from inferoptim.audit.options import ReadOptions
from inferoptim.audit.phases import Machine, MeanLengths, roofline
from inferoptim.audit.run import AuditOptions, audit_trace
from inferoptim.audit.sample import SampleOptions
from inferoptim.bench.cases import build_cases
from inferoptim.bench.plan import make_plan
from inferoptim.cli.main import app, main
from inferoptim.economics.roofline import find_shape
from inferoptim.errors import UnsupportedError
from inferoptim.hardware.peaks import device_peaks
from inferoptim.records.audit_record import AuditRecord
from inferoptim.records.workload_file import format_workload, load_workload, shipped_workloads
from inferoptim.report.audit_page import render_audit
from inferoptim.report.audit_sentences import lever_reason
from inferoptim.report.language import Language
from inferoptim.report.texts import audit_en, audit_fr

MACHINE = Machine(find_shape("Llama-3.1-8B"), device_peaks("H100"))


def write_trace(path, n=3000, seed=0):
    rng = np.random.default_rng(seed)
    time = np.cumsum(rng.exponential(0.5, n))
    prompt, output = rng.integers(100, 2000, n), rng.integers(1, 300, n)
    rows = zip(time.tolist(), prompt.tolist(), output.tolist(), (output * 0.02).tolist(), strict=True)
    path.write_text(
        "timestamp,prompt_tokens,completion_tokens,duration_s\n"
        + "".join(f"{a},{b},{c},{d}\n" for a, b, c, d in rows)
    )
    return path


def write_prefix_trace(path, n=600, seed=0):
    rng = np.random.default_rng(seed)
    lines = []
    for i in range(n):
        own = [100 + 10 * i + k for k in range(3)]
        blocks = [0, 1, *own] if rng.random() < 0.5 else own
        lines.append(
            {
                "timestamp": 100 * i,
                "input_length": 512 * len(blocks) - 7,
                "output_length": 20,
                "hash_ids": blocks,
            }
        )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_catalogues_have_the_same_keys_and_places():
    assert audit_en.TEXTS.keys() == audit_fr.TEXTS.keys()
    for key, text in audit_en.TEXTS.items():
        assert set(re.findall(r"{(\w+)}", text)) == set(re.findall(r"{(\w+)}", audit_fr.TEXTS[key])), key


def test_floors_by_hand():
    """Llama-3.1-8B on one H100: 2·weights FLOPs a prompt token, all weights and the KV-cache read by a step."""
    shape = MACHINE.shape
    lengths = MeanLengths(prompt=1000, prompt_squared=1e6, output=100, context=1050, prompt_p99=4000)
    found = roofline(MACHINE, lengths, None)
    one = next(p for p in found.points if p.batch == 1)
    attention = 2 * 32 * 32 * 128 * 1e6
    assert one.prefill_s == pytest.approx((2 * shape.body * 1000 + 2 * shape.head + attention) / 989.5e12)
    step = (2 * (shape.body + shape.head) + 1050 * 131072) / 3350e9
    assert one.step_s == pytest.approx(step)
    assert one.decode_s == pytest.approx(100 * step)
    assert (found.chosen_batch, found.chosen_basis) == (8.0, "stated")
    assert roofline(MACHINE, lengths, 3.5).chosen_basis == "observed"
    with pytest.raises(UnsupportedError, match="T4"):
        Machine(find_shape("Llama-2-7B"), device_peaks("T4"))


def test_levers_follow_their_rules(tmp_path):
    record, _ = audit_trace([write_trace(tmp_path / "t.csv")], AuditOptions(machine=MACHINE))
    verdicts = {lever.lever: lever for lever in record.levers}
    assert verdicts["in_flight_batching"].verdict == "can_pay"  # outputs spread evenly over 1…300, 6 at once
    assert verdicts["in_flight_batching"].figures["waste"] == pytest.approx(1 - 150 / 267, abs=0.02)
    assert verdicts["prefix_caching"].verdict == "unknown"
    assert verdicts["prefix_caching"].missing == ("blocks",)
    assert verdicts["tensor_parallel"].verdict == "unlikely"
    without = lever_records(Facts(record.lengths, record.arrivals, None, None, None))
    assert {x.lever: x.verdict for x in without}["quantization"] == "unknown"
    for code in ("en", "fr"):
        for lever in (*record.levers, *without):
            sentence = lever_reason(lever, Language(code))
            assert "{" not in sentence


def test_prefix_lever_pays_on_planted_reuse(tmp_path):
    record, _ = audit_trace([write_prefix_trace(tmp_path / "t.jsonl", 2000)], AuditOptions(machine=MACHINE))
    lever = next(x for x in record.levers if x.lever == "prefix_caching")
    assert lever.verdict == "can_pay"
    assert record.prefix.reusable.low <= 512 / 2041 <= record.prefix.reusable.high


def test_workload_from_rows_is_near_its_trace(tmp_path):
    path = write_trace(tmp_path / "t.csv")
    options = AuditOptions(sample=SampleOptions("w", 256))
    _, made = audit_trace([path], options)
    _, again = audit_trace([path], options)
    assert format_workload(made) == format_workload(again)
    assert made.header.arrivals == "open"
    assert max(made.header.ks.values()) < 0.05
    assert made.rate_per_s == pytest.approx(2.0, rel=0.05)


def test_workload_from_a_window_keeps_shared_prefixes(tmp_path):
    path = write_prefix_trace(tmp_path / "t.jsonl")
    _, made = audit_trace([path], AuditOptions(sample=SampleOptions("w", 100)))
    assert made.header.source.method == "window"
    assert made.header.segment_tokens == (1024,)
    shared = sum(made.shared_tokens(r) for r in made.requests)
    assert shared == 1024 * sum(r.prompt_tokens == 512 * 5 - 7 for r in made.requests)
    gaps = np.diff([r.arrival_s for r in made.requests])
    assert gaps == pytest.approx(0.1)


def test_workload_of_a_trace_without_times_is_closed(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("prompt_tokens,completion_tokens\n" + "5,6\n7,0\n" * 10)
    record, made = audit_trace([path], AuditOptions(sample=SampleOptions("w", 4)))
    assert made.header.arrivals == "closed"
    assert {r.prompt_tokens for r in made.requests} == {5}
    assert "not_replayable" in [n.key for n in record.notes]


def test_page_and_record(tmp_path):
    path = write_prefix_trace(tmp_path / "<b>trace.jsonl")
    record, _ = audit_trace([path], AuditOptions(machine=MACHINE, stated={"ttft_s": 0.5, "tpot_s": 0.02}))
    assert AuditRecord.model_validate_json(record.model_dump_json()) == record
    for code in ("en", "fr"):
        page = render_audit(record, Language(code))
        assert f'<html lang="{code}">' in page
        assert "<b>trace" not in page  # escaped
        assert not re.findall(r"(?:src|href)=\"(?!#)", page)  # nothing from outside
        assert page.count("<svg") == 5
        assert page == render_audit(record, Language(code))


def test_prompt_lookup_counts_steps():
    prompt = [1, 2, 3, 4, 5, 6, 7, 8]
    assert tokens_per_step(prompt, [1, 2, 3, 4, 5, 6, 7, 8]) == pytest.approx(
        8 / 4
    )  # three alone, then five at once
    assert tokens_per_step([], [1, 2, 3]) == 1.0
    assert tokens_per_step(prompt, []) == 1.0


def test_ready_workloads():
    assert set(shipped_workloads()) == {"guide", "chat", "code", "rag", "summarise"}
    for name in shipped_workloads():
        made = load_workload(name)
        assert made.header.name == name
        assert made.distance() == pytest.approx(made.header.ks, abs=1e-4)
    ratio = {
        name: sum(r.prompt_tokens for r in w.requests) / sum(r.output_tokens for r in w.requests)
        for name in ("code", "chat")
        for w in [load_workload(name)]
    }
    assert ratio["code"] == pytest.approx(73, rel=0.05)
    assert ratio["chat"] == pytest.approx(5.5, rel=0.05)


class WordTokenizer:
    """Words of fixed spelling, one token each."""

    vocab_size = 676
    special_ids = frozenset()
    has_chat_template = False
    words = tuple(f" {a}{b}" for a in map(chr, range(97, 123)) for b in map(chr, range(97, 123)))
    index = {word: i for i, word in enumerate(words)}  # noqa: RUF012

    def encode(self, text, add_special_tokens=True):
        return [self.index[" " + w] for w in text.split()]

    def decode(self, ids, skip_special=True):
        return "".join(self.words[i] for i in ids)

    def apply_chat_template(self, messages, add_generation_prompt=True):
        raise AssertionError


def test_bench_prints_the_distance_from_the_trace():
    plan = make_plan(
        {
            "model": "m",
            "workloads": [{"name": "replay", "file": "code", "concurrency": [8], "requests_per_slot": 4}],
        }
    )
    (case,) = build_cases(plan, WordTokenizer(), 8192)
    assert case.open_loop
    stored = load_workload("code")
    shown = stored.distance(stored.requests[:32])
    assert f"prompt_tokens {shown['prompt_tokens']:.3f}" in case.notes[0]
    assert "gap_s" in case.notes[0]


def test_command_line(tmp_path):
    trace, page, save = write_trace(tmp_path / "t.csv", 400), tmp_path / "a.html", tmp_path / "mine.jsonl"
    result = CliRunner().invoke(
        app, ["audit", str(trace), "--json", "--html", str(page), "--save-workload", str(save)]
    )
    assert result.exit_code == 0, result.output
    record = AuditRecord.model_validate_json(result.stdout)
    assert record.trace.requests == 400
    assert record.concurrency.basis == "durations"
    assert load_workload(save).header.name == "mine"
    assert "</html>" in page.read_text()
    shown = CliRunner().invoke(app, ["audit", str(trace), "--lang", "fr"])
    assert "Les leviers qui peuvent payer ici" in shown.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--lang", "de"], "--lang"),
        (["--map", "prompt"], "FIELD=COLUMN"),
        (["--ttft-ms", "5"], "belong together"),
        (["--gpu", "H9000"], "no published peaks"),
        (["--precision", "int3"], "unknown precision"),
        (["--requests", "0", "--save-workload", "x"], "--requests"),
        (["--sample", "best", "--save-workload", "x"], "--sample"),
        (["--time-unit", "min"], "--time-unit"),
        (["--tokenizer", "mistral:v9"], "one of tekken"),
        (["--html", "/proc/no/a.html"], "cannot write"),
    ],
)
def test_wrong_options_are_one_line(tmp_path, capsys, options, said):
    trace = write_trace(tmp_path / "t.csv", 20)
    assert main(["audit", str(trace), *options]) in (2, 3)
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error


def test_disk_full_while_saving_leaves_nothing(tmp_path, monkeypatch, capsys):
    """A file system without room: the error says so, and no half-written file stays."""
    import errno
    from pathlib import Path

    trace, save = write_trace(tmp_path / "t.csv", 20), tmp_path / "w.jsonl"
    real = Path.write_text

    def full(self, data, *args, **kwargs):
        real(self, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert main(["audit", str(trace), "--save-workload", str(save)]) == 4
    printed = capsys.readouterr()
    assert "disk full" in printed.err
    assert "Which levers can pay here" in printed.out  # the figures are not lost with the file
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


def test_audit_starts_without_torch():
    code = (
        "import sys; import inferoptim.audit.run, inferoptim.audit.open_trace, inferoptim.audit.read_json, "
        "inferoptim.audit.read_csv, inferoptim.report.audit_page, inferoptim.cli.audit; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_salt_makes_hashes_unlinkable():
    a, b = ReadOptions(), ReadOptions()
    assert a.hash("x") == a.hash("x") != b.hash("x")
