"""The cases of a plan: built-in traffic, prompts of one's own, and workload files, closed and open."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inferoptim.bench.cases import build_cases
from inferoptim.bench.plan import make_plan
from inferoptim.errors import ConfigError
from inferoptim.models.tokenizer import Tokenizer, load_tokenizer
from inferoptim.records.workload_file import load_workload, save_workload
from tests.bpe import save_bpe_tokenizer

CONTEXT = 8192


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("bpe")
    save_bpe_tokenizer(folder, vocab_size=2048)
    return load_tokenizer(folder)


def test_a_closed_workload_is_one_case_a_concurrency(tokenizer: Tokenizer) -> None:
    plan = make_plan(
        {"model": "m", "workloads": [{"name": "guide", "concurrency": [1, 4], "prompt_tokens": 40}]}
    )
    one, four = build_cases(plan, tokenizer, CONTEXT)
    assert (one.name, four.name) == ("guide@1", "guide@4")
    assert (len(one.requests), len(four.requests)) == (1, 4)
    assert four.prompt_tokens == 160
    assert all(r.sampling.greedy and r.sampling.ignore_eos for r in four.requests)
    assert four.shareable_tokens < 40  # every prompt is another text


def test_a_workload_file_is_replayed_at_its_arrivals_in_one_case(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    stored = load_workload("rag")
    file = tmp_path / "mine.jsonl"
    save_workload(file, stored)
    plan = make_plan(
        {
            "model": "m",
            "workloads": [
                {"name": "replay", "file": str(file), "concurrency": [1, 4], "requests_per_slot": 2}
            ],
        }
    )
    (case,) = build_cases(plan, tokenizer, 1 << 20)
    assert case.name == "rag@4"
    assert len(case.requests) == 8
    assert case.notes == (f"rag: the first 8 of {len(stored.requests)} requests were used",)
    assert case.open_loop == (stored.header.arrivals == "open")
    for request, wanted in zip(case.requests, stored.requests, strict=False):
        assert len(request.prompt_token_ids) == wanted.prompt_tokens
        assert request.sampling.max_tokens == wanted.output_tokens
        assert request.arrival_offset_s == wanted.arrival_s


def test_what_does_not_fit_the_context_is_named(tokenizer: Tokenizer) -> None:
    plan = make_plan({"model": "m", "workloads": [{"name": "replay", "file": "rag", "concurrency": [1]}]})
    with pytest.raises(ConfigError, match=r"rag, request \d+.*exceed the context of 64"):
        build_cases(plan, tokenizer, 64)


def test_prompts_with_arrivals_make_an_open_loop(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        "".join(json.dumps({"prompt": f"Question {i}", "arrival_s": i / 10}) + "\n" for i in range(3))
    )
    plan = make_plan(
        {"model": "m", "workloads": [{"name": "prompts", "file": str(file), "concurrency": [1, 2]}]}
    )
    (case,) = build_cases(plan, tokenizer, CONTEXT)
    assert case.open_loop
    assert [r.arrival_offset_s for r in case.requests] == [0.0, 0.1, 0.2]


def test_two_workloads_of_one_name_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "p.txt").write_text("one\ntwo\n")
    parts = [
        {"name": "prompts", "file": str(tmp_path / folder / "p.txt"), "concurrency": [1]} for folder in "ab"
    ]
    with pytest.raises(ConfigError, match=r"two of them are called p.txt@1"):
        build_cases(make_plan({"model": "m", "workloads": parts}), tokenizer, CONTEXT)
