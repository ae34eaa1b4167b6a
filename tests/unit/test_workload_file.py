"""Workload files: what is written is read back; what is broken is refused with its line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tokenizers import decoders as token_decoders
from tokenizers import models, pre_tokenizers

from inferoptim.errors import ConfigError, DataError
from inferoptim.models.tokenizer import Tokenizer
from inferoptim.records.synthetic_text import SyntheticText
from inferoptim.records.workload_file import (
    Workload,
    WorkloadHeader,
    WorkloadRequest,
    WorkloadSource,
    format_workload,
    ks_distance,
    load_workload,
    parse_workload,
    save_workload,
    shipped_workloads,
)


def workload(requests, segments=(), arrivals="open", **fields):
    header = WorkloadHeader(
        name="w",
        arrivals=arrivals,
        segment_tokens=segments,
        source=WorkloadSource(kind="stated"),
        num_requests=len(requests),
        **fields,
    )
    return Workload(header, tuple(requests))


SMALL = workload(
    [WorkloadRequest(12, 3, 0.0, (0,)), WorkloadRequest(20, 5, 0.25, (0, 1)), WorkloadRequest(4, 1, 1.5)],
    segments=(8, 6),
)


def test_read_back_equals_what_was_written(tmp_path):
    path = tmp_path / "w.jsonl"
    save_workload(path, SMALL)
    assert load_workload(path) == SMALL
    assert [p.name for p in tmp_path.iterdir()] == ["w.jsonl"]


def test_fingerprint_follows_the_traffic_and_not_the_name():
    renamed = Workload(SMALL.header.model_copy(update={"name": "other"}), SMALL.requests)
    reseeded = Workload(SMALL.header.model_copy(update={"seed": 1}), SMALL.requests)
    assert renamed.fingerprint == SMALL.fingerprint
    assert reseeded.fingerprint != SMALL.fingerprint
    assert Workload(SMALL.header, SMALL.requests[:2]).fingerprint != SMALL.fingerprint


def test_rescaling_the_rate_keeps_the_shape():
    faster = SMALL.at_rate(4.0)
    assert faster.rate_per_s == pytest.approx(4.0)
    assert faster.requests[1].arrival_s / faster.requests[2].arrival_s == pytest.approx(0.25 / 1.5)
    with pytest.raises(ConfigError):
        workload([WorkloadRequest(1, 1)], arrivals="closed").at_rate(1.0)


@pytest.mark.parametrize(
    ("number", "line", "words"),
    [
        (1, '{"format": "other"}', "not a workload file"),
        (1, '{"format": "inferoptim-workload", "version": 9}', "version 9"),
        (2, "{", "line 2"),
        (2, '{"arrival_s": 0, "prompt_tokens": 0, "output_tokens": 1}', "line 2: prompt_tokens"),
        (2, '{"arrival_s": 0, "prompt_tokens": 5.5, "output_tokens": 1}', "prompt_tokens"),
        (2, '{"arrival_s": -1, "prompt_tokens": 5, "output_tokens": 1}', "arrival_s"),
        (2, '{"prompt_tokens": 5, "output_tokens": 1}', "arrival_s"),
        (2, '{"arrival_s": 0, "prompt_tokens": 5, "output_tokens": 1, "segments": [7]}', "segments"),
        (2, '{"arrival_s": 0, "prompt_tokens": 5, "output_tokens": 1, "segments": [0]}', "longer than"),
        (2, '{"arrival_s": 9, "prompt_tokens": 5, "output_tokens": 1}', "order"),
        (2, '{"arrival_s": 0, "prompt_tokens": 5, "output_tokens": 1, "text": "x"}', "unknown field 'text'"),
        (4, "", "3 requests announced, 2 found"),
    ],
)
def test_broken_files_are_refused_with_their_line(number, line, words):
    lines = format_workload(SMALL).splitlines()
    lines[number - 1] = line
    with pytest.raises(DataError, match=words):
        parse_workload("\n".join(lines), "w.jsonl")


def test_unknown_names_list_the_ready_ones(tmp_path):
    with pytest.raises(ConfigError, match="guide"):
        load_workload("nothing-of-the-kind")
    binary = tmp_path / "b"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        load_workload(binary)


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=30), st.lists(st.integers(0, 6), min_size=1, max_size=30)
)
def test_ks_distance_is_scipys(first, second):
    ours = ks_distance(np.array(first), np.array(second))
    assert ours == pytest.approx(stats.ks_2samp(first, second, method="asymp").statistic)


def test_distance_ignores_the_replay_rate():
    gaps = tuple(np.linspace(0.1, 2.0, 50))
    requests = [WorkloadRequest(10, 10, t) for t in np.concatenate([[0], np.cumsum(gaps)])]
    made = workload(requests, reference={"gap_s": gaps, "prompt_tokens": (10.0,), "output_tokens": (20.0,)})
    assert made.distance()["gap_s"] == pytest.approx(0.0, abs=1e-6)
    assert made.at_rate(17.0).distance()["gap_s"] == pytest.approx(0.0, abs=1e-6)
    assert made.distance()["prompt_tokens"] == 0.0
    assert made.distance()["output_tokens"] == 1.0


@pytest.mark.parametrize("name", shipped_workloads())
def test_ready_workloads_load(name):
    ready = load_workload(name)
    assert ready.header.name == name
    assert len(ready.requests) >= 200
    if ready.header.source.kind == "trace":
        assert ready.distance() == pytest.approx(ready.header.ks, abs=1e-3)
        assert ready.header.source.sha256


def word_tokenizer(tmp_path, bos=False):
    """A byte-level vocabulary of 100 words, as a real one writes them."""
    words = ["Ġ" + a + b + c for a in "bcdfg" for b in "aeiou" for c in "lmnr"]
    vocab = {w: i for i, w in enumerate(["<s>", "<unk>", *words])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = token_decoders.ByteLevel()
    backend.add_special_tokens(["<s>"])
    if bos:
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            "<s> $A", special_tokens=[("<s>", 0)]
        )
    return Tokenizer(backend, folder=tmp_path)


@pytest.mark.parametrize("bos", [False, True])
def test_synthetic_prompts_have_exactly_the_tokens_asked_and_share_their_segments(tmp_path, bos):
    tokenizer = word_tokenizer(tmp_path, bos)
    prompts = SyntheticText(tokenizer).prompts(SMALL)
    assert [len(p.token_ids) for p in prompts] == [12, 20, 4]
    assert all(tuple(tokenizer.encode(p.text)) == p.token_ids for p in prompts)
    assert prompts[0].token_ids[:8] == prompts[1].token_ids[:8]
    assert prompts[0].token_ids[8:12] != prompts[1].token_ids[8:12]
    assert SyntheticText(tokenizer).prompt(SMALL, 1) == prompts[1]
    other = Workload(SMALL.header.model_copy(update={"seed": 5}), SMALL.requests)
    assert SyntheticText(tokenizer).prompt(other, 1).text != prompts[1].text


def test_json_of_a_closed_workload_has_no_arrivals():
    lines = format_workload(workload([WorkloadRequest(3, 4)], arrivals="closed")).splitlines()
    assert json.loads(lines[1]) == {"prompt_tokens": 3, "output_tokens": 4}
