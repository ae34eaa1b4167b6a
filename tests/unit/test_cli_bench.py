"""Bad input to `inferoptim bench`: one line that says what, where and what to do; nothing started, nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from inferoptim.cli.main import main
from tests.bpe import save_bpe_tokenizer
from tests.tiny import save_tiny_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_llama(folder, vocab_size=512)
    save_bpe_tokenizer(folder, vocab_size=512)
    return str(folder)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    status = main(["bench", *words])
    error = capsys.readouterr().err.strip()
    assert status != 0
    lines = [line for line in error.splitlines() if line.startswith("inferoptim: ")]
    assert len(lines) == 1, error
    assert "unexpected" not in lines[0], error
    return lines[0]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--concurrency", "1,many"], "--concurrency: whole numbers"),
        (["--workload", "gide"], "no workload 'gide'"),
        (["--workload", "synthetic:0/4"], "both lengths must be at least 1"),
        (["--workload", "synthetic:8/4", "--output-tokens", "9"], "states its own lengths"),
        (["--prompts", "nowhere.txt"], "nowhere.txt"),
        (["--prompts", "nowhere.txt", "--quick"], "nowhere.txt"),
        (["--concurrency", "0"], "workloads.0: concurrency levels must be distinct and at least 1"),
        (["--design", "waterfall"], "design"),
        (["--lang", "de"], "report language 'de'"),
        (["--price-source", "a friend"], "price_source without price_per_hour"),
        (["--runs", "0"], "runs"),
        (["--workload", "synthetic:100/100"], "exceed the context of 128"),
    ],
)
def test_flags(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], text: str
) -> None:
    out = tmp_path / "results" / "run"
    line = refused(capsys, "--model", model, "--out", str(out), *words)
    assert text in line
    assert "Tuple should have" not in line, "only what the person wrote"
    assert not out.parent.exists()


def test_a_plan_names_line_and_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("model: smollm2-135m\nruns: 3\nworkloads:\n  - name: guide\n    concurency: [1]\n")
    line = refused(capsys, "--plan", str(plan))
    assert "line 5" in line
    assert "concurency" in line


def test_folders(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ("--model", model, "--workload", "synthetic:8/4")
    file = tmp_path / "file"
    file.write_text("x")
    assert "is a file" in refused(capsys, *base, "--out", str(file))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("keep me")
    assert "not empty" in refused(capsys, *base, "--out", str(mine))
    assert "holds no run" in refused(capsys, *base, "--out", str(mine), "--force")
    assert [p.name for p in mine.iterdir()] == ["letter.txt"]


def test_resume_takes_no_other_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds no bench run" in refused(capsys, "--resume", str(tmp_path))
    assert "stored plan" in refused(capsys, "--resume", str(tmp_path), "--runs", "3")


def test_a_model_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere" in refused(capsys, "--model", str(tmp_path / "nowhere"), "--out", str(tmp_path / "o"))
    assert not (tmp_path / "o").exists()
