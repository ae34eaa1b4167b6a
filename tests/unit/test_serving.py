"""The server's parts that need no server."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from inferoptim.errors import ConfigError, DataError
from inferoptim.models.artefact import engine_fields
from inferoptim.serving import messages as m
from inferoptim.serving.admission import Admission, QueueFullError
from inferoptim.serving.auth import read_keys
from inferoptim.serving.engine_time import EngineTime
from inferoptim.serving.metrics import Histogram, Metrics
from inferoptim.serving.money import OTHERS, Ledger, Prices
from inferoptim.serving.tools import ToolReader

# ---- frames ----------------------------------------------------------------------------------------------------------


def test_frames_survive_any_cut() -> None:
    sent = [m.Step(1.5, [m.Output(f"r{i}", [1, 2], None, i)], None, []) for i in range(5)]
    data = b"".join(m.encode_frame(message) for message in sent)
    for seed in range(20):
        cuts = sorted(random.Random(seed).sample(range(1, len(data)), 9))
        reader = m.FrameReader()
        frames = [
            f for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) for f in reader.feed(data[a:b])
        ]
        assert [m.decode_to_server(frame) for frame in frames] == sent


def test_a_corrupt_stream_is_noticed() -> None:
    with pytest.raises(ValueError, match="corrupt"):
        m.FrameReader().feed(b"\xff\xff\xff\xff")


# ---- engine time -----------------------------------------------------------------------------------------------------


def drained(time: EngineTime) -> dict[str, tuple[float, float]]:
    return {name: (prefill, decode) for name, prefill, decode, _ in time.drain()}


def test_shares_of_a_step_add_up_and_a_decode_costs_more_than_a_prefill_token() -> None:
    time = EngineTime()
    time.add("a", 100)
    time.add("b", 100)
    time.step(0.0, 1.0, [("a", 0, 100)])  # prefill: 10 ms a token
    time.step(1.0, 1.5, [("a", 100, 1)])  # decode: 500 ms a token
    assert drained(time) == {"a": (1.0, 0.5)}
    time.step(2.0, 4.0, [("a", 101, 1), ("b", 40, 50)])  # 500 ms of decode against 500 ms of prefill: even
    shares = drained(time)
    assert shares["a"] == (0.0, pytest.approx(1.0))
    assert shares["b"] == (pytest.approx(1.0), 0.0)
    assert time.busy_s == pytest.approx(3.5)


def test_every_second_is_somebodys() -> None:
    rng = random.Random(3)
    time = EngineTime()
    total: dict[str, float] = {}
    names = [f"r{i}" for i in range(8)]
    for name in names:
        time.add(name, 50)
    now = 0.0
    for step in range(200):
        chosen = rng.sample(names, rng.randint(1, 8))
        now += 1.0
        work = [(n, 0 if rng.random() < 0.3 else 60, rng.randint(1, 30)) for n in chosen]
        time.step(now, now + rng.random(), work)
        if step % 7 == 0:
            for name, (prefill, decode) in drained(time).items():
                total[name] = total.get(name, 0.0) + prefill + decode
    time.leave("r0")
    time.leave("r0")
    last = time.drain()
    assert [name for name, *_, left in last if left] == ["r0"], "the last news of a request comes once"
    assert sum(total.values()) + sum(p + d for _, p, d, _ in last) == pytest.approx(time.busy_s)


# ---- admission -------------------------------------------------------------------------------------------------------


def test_admission_is_all_or_nothing() -> None:
    admission = Admission(max_queue=2)
    admission.enter(3, max_num_seqs=2)
    with pytest.raises(QueueFullError, match="adds 2") as caught:
        admission.enter(2, max_num_seqs=2)
    assert caught.value.retry_after_s == 1, "nothing is known yet"
    admission.enter(1, max_num_seqs=2)
    for _ in range(4):
        admission.leave(1)
    admission.enter(4, max_num_seqs=2)


# ---- artefacts -------------------------------------------------------------------------------------------------------


def test_an_artefact_says_how_it_is_served(tmp_path: Path) -> None:
    assert engine_fields(tmp_path) == engine_fields(Path("smollm2-135m")) == ({}, None)
    path = tmp_path / "artefact.json"
    path.write_text('{"engine": {"model": "elsewhere", "max_num_seqs": 8}}')
    assert engine_fields(tmp_path) == ({"max_num_seqs": 8}, None)
    for wrong in ("", "[]", "{}", '{"engine": 5}'):
        path.write_text(wrong)
        with pytest.raises(DataError, match=r"artefact\.json"):
            engine_fields(tmp_path)


# ---- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no key"),
        ("alice", "name:key"),
        ("alice:short", "at least 16"),
        ("a:" + "k" * 20 + "\na:" + "l" * 20, "twice"),
        ("a:" + "k" * 20 + "\nb:" + "k" * 20, "two names"),
    ],
)
def test_a_wrong_key_file_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ConfigError, match=problem):
        read_keys(path)


def test_keys_name_their_owner(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# keys\n\nalice: " + "k" * 20 + "\nbob:" + "é" * 20)
    keys = read_keys(path)
    assert keys.name_of("Bearer " + "k" * 20) == "alice"
    assert keys.name_of("bearer " + "é" * 20) == "bob"
    for wrong in (None, "", "Bearer", "Basic " + "k" * 20, "Bearer " + "k" * 19, "k" * 20):
        assert keys.name_of(wrong) is None


# ---- money and metrics -----------------------------------------------------------------------------------------------


def test_cost_by_hand() -> None:
    ledger = Ledger(Prices(usd_per_hour=3.6))  # a tenth of a cent a second
    account = ledger.accounts[ledger.label("alice")]
    account.prefill_s, account.decode_s = 2.0, 10.0
    account.prompt_tokens, account.cached_tokens, account.generation_tokens = 4000, 3000, 500
    assert ledger.usd(12.0) == pytest.approx(0.012)
    per_million = ledger.per_million(account)
    assert per_million["input"] == pytest.approx(
        0.5
    )  # $0.002 for 4 000 tokens, 3 000 of them found in the cache
    assert per_million["output"] == pytest.approx(20.0)  # $0.010 for 500 tokens
    assert Ledger(Prices()).per_million(account) == {}, "no price, no cost"
    assert Ledger(Prices(usd_per_kwh=0.36)).energy_usd(1e6) == pytest.approx(0.1)
    with pytest.raises(ConfigError, match="usd_per_hour"):
        Prices(usd_per_hour=float("nan"))


def test_tenants_are_bounded() -> None:
    ledger = Ledger(Prices(), max_tenants=3)
    labels = [ledger.label(f"t{i}") for i in range(100)]
    assert set(labels) == {"t0", "t1", "t2", OTHERS}
    assert ledger.label("t1") == "t1"
    assert len(ledger.accounts) == 4


def test_histogram_bounds_are_inclusive() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 99.0):
        histogram.observe(value)
    assert (histogram.counts, histogram.sum) == ([2, 2, 1], 104.0)


def test_counters_never_fall_when_an_engine_dies() -> None:
    metrics = Metrics(Ledger(Prices()))
    metrics.on_stats(m.Stats({"steps": 10, "busy_s": 1.5}, {"running": 3}))
    metrics.on_engine_death()
    assert (metrics.counter("steps"), metrics.counter("busy_s"), metrics.gauges) == (10, 1.5, {})
    metrics.on_stats(m.Stats({"steps": 4, "busy_s": 0.5}, {}))
    assert (metrics.counter("steps"), metrics.counter("busy_s")) == (14, 2.0)


# ---- tool calls ------------------------------------------------------------------------------------------------------

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "</tool_call>"}}\n</tool_call>'


def read(text: str, size: int) -> tuple[str, list[Any]]:
    reader = ToolReader()
    content, calls = "", []
    for at in range(0, len(text), size):
        pieces = reader.feed(text[at : at + size], finished=at + size >= len(text))
        content += pieces.content
        calls += [(call.name, call.arguments) for call in pieces.calls]
    return content, calls


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("plain <tool text", "plain <tool text", 0),
        (f"first {CALL}", "first ", 1),
        (f"{CALL}\n{CALL}", "", 2),
        (
            '<tool_call>\n{"name": "f", "argum',
            '<tool_call>\n{"name": "f", "argum',
            0,
        ),  # cut off by max_tokens
    ],
)
def test_calls_are_read_however_the_text_is_cut(size: int, text: str, content: str, calls: int) -> None:
    found, names = read(text, size)
    assert found == content
    assert names == [("f", '{"a": "</tool_call>"}')] * calls
