"""`inferoptim compare` on a tiny model: paired statistics, exit status, JUnit and Markdown, bad tasks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from inferoptim.build.pipeline import build_artefact
from inferoptim.cli.main import main
from tests.artefacts import RECIPES, TEXT, request, tiny_source


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFEROPTIM_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_source(tmp_path_factory.mktemp("source"))


def test_compare_passes_a_model_against_itself_and_fails_the_higher_perplexity(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(model, other)
    weights = load_file(other / "model.safetensors")
    noise = torch.Generator().manual_seed(1)
    for name, tensor in weights.items():
        if "proj" in name:
            tensor += torch.randn(tensor.shape, generator=noise) * tensor.std()
    save_file(weights, other / "model.safetensors")
    (tmp_path / "texts.txt").write_text("\n".join(TEXT[:6]))
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text(
        '{"prompt": "The quick", "choices": [" brown", " green"], "answer": 0}\n{"prompt": "a", "regex": "."}\n'
    )
    common = [
        "--texts",
        str(tmp_path / "texts.txt"),
        "--tasks",
        str(tasks),
        "--runs",
        "2",
        "--concurrency",
        "2",
    ]
    common += ["--output-tokens", "4"]
    report = tmp_path / "report.md"
    assert main(["compare", str(model), str(model), *common, "--markdown", str(report)]) == 0
    assert "Model comparison: passed" in report.read_text()
    assert "detectable" in report.read_text()
    junit = tmp_path / "junit.xml"
    capsys.readouterr()
    assert main(["compare", str(other), str(model), *common, "--junit", str(junit), "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["perplexity_ratio"]["value"] > 1.02
    assert '<failure message="perplexity increase' in junit.read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU rounds the inputs of FP8 products")
def test_compare_says_that_a_cpu_does_not_round_the_inputs_of_fp8(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_artefact(request(model, tmp_path / "built", RECIPES["fp8"]))
    (tmp_path / "texts.txt").write_text("\n".join(TEXT[:3]))
    (tmp_path / "tasks.jsonl").write_text('{"prompt": "a", "regex": "."}\n')
    asked = ["--texts", str(tmp_path / "texts.txt"), "--tasks", str(tmp_path / "tasks.jsonl"), "--runs", "0"]
    asked += ["--max-perplexity-increase", "1", "--json"]
    assert main(["compare", str(model), str(tmp_path / "built"), *asked]) == 0
    result = json.loads(capsys.readouterr().out)
    assert "unrounded inputs" in " ".join(result["notes"])
    assert result["top1_agreement"]["high"] <= 1


def test_bad_tasks_are_named_by_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = tmp_path / "tasks.jsonl"
    for line, said in (
        ('{"prompt": "a"}', "either 'choices'"),
        ('{"prompt": "a", "choices": ["x", "y"], "answer": 2}', "0 to 1"),
        ('{"prompt": "a", "regex": "("}', "not a pattern"),
        ("nonsense", "not JSON"),
    ):
        tasks.write_text('{"prompt": "a", "regex": "x"}\n' + line + "\n")
        assert main(["compare", str(model), str(model), "--tasks", str(tasks)]) == 2
        error = capsys.readouterr().err
        assert "line 2" in error
        assert said in error
