"""`inferoptim compare` against a live server: an endpoint beside the same model in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inferoptim.cli.main import main
from tests.server import RunningServer

TEXTS = [f"Sentence {i}: the river runs past the old mill, and nobody counts the days." for i in range(4)]
TASKS = [
    {"prompt": "The river", "choices": [" runs", " sings", " burns"], "answer": 0},
    {"prompt": "Nobody", "choices": [" counts", " stone"], "answer": 1},
    {"prompt": "The old mill", "regex": "."},
]


def test_an_endpoint_gives_what_its_model_gives_here(
    server: RunningServer, tiny_chat_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, tasks = tmp_path / "texts.txt", tmp_path / "tasks.jsonl"
    texts.write_text("\n".join(TEXTS))
    tasks.write_text("\n".join(map(json.dumps, TASKS)))
    sample = ["--texts", str(texts), "--tasks", str(tasks), "--concurrency", "2", "--output-tokens", "4"]
    command = ["compare", server.url, str(tiny_chat_model), *sample, "--runs", "2", "--price-per-hour", "2"]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["perplexity_ratio"]["value"] == pytest.approx(1, abs=1e-4)
    assert result["perplexity_a"] == pytest.approx(result["perplexity_b"], rel=1e-4)
    assert result["accuracy"]["only_a"] == result["accuracy"]["only_b"] == 0
    assert result["kl_nats"] is None  # an endpoint does not give whole distributions
    assert result["output_tokens_per_s_a"]["value"] > 0
    assert result["cost_a"] > 0
    assert main(["compare", server.url, server.url + "/v1", *sample, "--runs", "0"]) == 0
    assert "not measured" in capsys.readouterr().out


def test_a_dead_endpoint_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "http://127.0.0.1:9", "http://127.0.0.1:9", "--runs", "0"]) != 0
    error = capsys.readouterr().err
    assert "127.0.0.1:9" in error
    assert "Traceback" not in error
