"""The two targets of the bench do the same work: same tokens, exact lengths, padded batches and closed loops included."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from inferoptim.config import EngineConfig, SamplingParams
from inferoptim.errors import ConfigError, UnsupportedError
from inferoptim.targets.base import Target, TargetRequest
from inferoptim.targets.engine import EngineTarget
from inferoptim.targets.transformers import TransformersTarget
from tests.tiny import save_tiny_llama, tiny_tokenizer

LENGTHS = [(5, 7), (17, 3), (9, 12), (30, 1), (12, 6)]  # prompt, new tokens


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_llama(folder)
    tiny_tokenizer(folder)
    return folder


def requests(gap_s: float = 0.0) -> list[TargetRequest]:
    return [
        TargetRequest(
            f"r{i}",
            "",
            tuple((7 * i + 3 * j) % 250 + 3 for j in range(prompt)),
            SamplingParams(max_tokens=new, temperature=0.0, ignore_eos=True),
            arrival_offset_s=gap_s * i,
        )
        for i, (prompt, new) in enumerate(LENGTHS)
    ]


def engine(model: Path, **fields: object) -> EngineTarget:
    config = EngineConfig.levers_off(
        model=str(model),
        device="cpu",
        dtype="float32",
        kernels="torch",
        max_model_len=64,
        max_num_seqs=2,
        **fields,
    )
    target = EngineTarget(config.model_dump())
    target.load()
    return target


def baseline(model: Path, **fields: object) -> TransformersTarget:
    target = TransformersTarget({"model": str(model), "dtype": "float32", **fields})
    target.load()
    return target


@pytest.mark.parametrize("in_flight", [False, True])
def test_engine_and_transformers_produce_the_same_tokens(model: Path, in_flight: bool) -> None:
    ours, theirs = engine(model, in_flight_batching=in_flight), baseline(model)
    expected = theirs.run(requests(), concurrency=2)
    found = ours.run(requests(), concurrency=2)
    for (_, new), a, b in zip(LENGTHS, expected, found, strict=True):
        assert len(a.token_ids) == new
        assert a.token_ids == b.token_ids
        for response in (a, b):
            assert response.error is None
            assert response.token_times_s is not None
            assert len(response.token_times_s) == new
            assert list(response.token_times_s) == sorted(response.token_times_s)
            assert response.sent_s <= response.token_times_s[0]
            assert response.finished_s == response.token_times_s[-1]


def test_a_closed_loop_never_has_more_in_flight_than_asked(model: Path) -> None:
    for target in (engine(model, in_flight_batching=True), baseline(model)):
        responses = target.run(requests(), concurrency=2)
        events = [(r.sent_s, 1) for r in responses] + [(r.finished_s, -1) for r in responses]
        running = most = 0
        for _, change in sorted(events):  # an end sorts before a start at the same time
            running += change
            most = max(most, running)
        assert most <= 2


def test_an_open_loop_sends_no_request_before_its_time(model: Path) -> None:
    targets: list[Target] = [engine(model, in_flight_batching=True), baseline(model, max_batch_size=2)]
    for target in targets:
        started = time.perf_counter()
        for i, response in enumerate(target.run(requests(gap_s=0.01))):
            assert response.sent_s - started >= 0.01 * i
            assert len(response.token_ids) == LENGTHS[i][1]


def test_a_reset_forgets_the_prefix_cache(model: Path) -> None:
    target = engine(model, in_flight_batching=True, paged_kv=True, prefix_caching=True, block_size=4)
    target.run(requests(), concurrency=2)
    cold = target.counters()["prefix_cache_hit_tokens"]
    again = [TargetRequest(f"again-{r.request_id}", "", r.prompt_token_ids, r.sampling) for r in requests()]
    target.reset()
    target.run(again, concurrency=2)
    assert target.counters()["prefix_cache_hit_tokens"] == 2 * cold


def test_logits_agree(model: Path) -> None:
    ids = requests()[3].prompt_token_ids
    assert abs(engine(model).logits(ids) - baseline(model).logits(ids)).max() < 1e-4


def test_what_the_baseline_cannot_do_is_refused(model: Path) -> None:
    with pytest.raises(ConfigError, match="wings"):
        TransformersTarget({"model": str(model), "wings": 2})
    sampled = [TargetRequest("r", "", (5, 6), SamplingParams(max_tokens=2, temperature=0.7))]
    with pytest.raises(UnsupportedError, match="greedily"):
        baseline(model).run(sampled, concurrency=1)


@pytest.mark.parametrize("batching", ["sequential", "static"])
def test_a_static_cache_changes_no_token_and_is_kept_for_the_next_request(model: Path, batching: str) -> None:
    plain = baseline(model, batching=batching)
    static = baseline(model, batching=batching, static_cache=True, max_cache_len=64)
    for _ in range(2):  # the second time into caches that were used
        expected = [r.token_ids for r in plain.run(requests(), concurrency=2)]
        assert [r.token_ids for r in static.run(requests(), concurrency=2)] == expected
    assert {length for _, length in static._caches.values()} == {64}
