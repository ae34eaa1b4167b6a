"""Every format is recognised and read right; every bad row is counted with its line; every bad file is refused in one line."""

from __future__ import annotations

import gzip
import json

import numpy as np
import polars as pl
import pytest
import zstandard

from inferoptim.audit.open_trace import open_trace
from inferoptim.audit.options import ReadOptions
from inferoptim.audit.run import AuditOptions, audit_trace
from inferoptim.errors import ConfigError, DataError

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.0319600,3180,8\n"


def read(path, **options):
    reader = open_trace(path, ReadOptions(**options))
    return reader, list(reader.batches())


def one(path, **options):
    reader, batches = read(path, **options)
    assert len(batches) == 1
    return reader, batches[0]


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def audit(path, **options):
    return audit_trace([path], AuditOptions(**options))[0]


def test_azure(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(AZURE)
    reader, batch = one(path)
    assert reader.mapped.name == "azure-llm-inference"
    assert batch.prompt_tokens.tolist() == [4808, 3180]
    assert batch.output_tokens.tolist() == [10, 8]
    assert np.diff(batch.arrival_s) == pytest.approx(0.052, abs=1e-6)
    assert batch.arrival_s[0] == pytest.approx(1700158623.97996, abs=1e-5)


def test_burstgpt(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,12,1.5,ChatGPT,472,18,490,Conversation log\n45,12,2,GPT-4,1087,230,1317,Conversation log\n"
    )
    reader, batch = one(path)
    assert reader.mapped.name == "burstgpt"
    assert batch.arrival_s.tolist() == [5, 45]
    assert batch.duration_s.tolist() == [1.5, 2]
    assert (batch.prompt_tokens.tolist(), batch.output_tokens.tolist()) == ([472, 1087], [18, 230])
    assert batch.session[0] == batch.session[1] != 0


def test_mooncake(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text(
        lines(
            {"timestamp": 0, "input_length": 700, "output_length": 5, "hash_ids": [0, 1]},
            {"timestamp": 3000, "input_length": 600, "output_length": 7, "hash_ids": [0, 2]},
        )
    )
    reader, batch = one(path)
    assert reader.mapped.name == "mooncake"
    assert batch.arrival_s.tolist() == [0, 3]  # milliseconds
    assert [b.tolist() for b in batch.blocks] == [[0, 1], [0, 2]]
    record = audit(path)
    assert record.prefix.block_tokens == 512
    assert record.prefix.reusable.value == pytest.approx(512 / 1300)


def test_sharegpt_array_gives_one_request_per_answer(tmp_path):
    path = tmp_path / "sharegpt.json"
    talk = [
        {"from": "human", "value": "a"},
        {"from": "gpt", "value": "bb"},
        {"from": "human", "value": "c"},
        {"from": "gpt", "value": "d"},
    ]
    path.write_text(
        json.dumps([{"id": "x", "conversations": talk}, {"id": "y", "conversations": talk[:2]}], indent=1)
    )
    reader, batch = one(path)
    assert reader.mapped.name == "sharegpt"
    assert [t.prompt for t in batch.texts] == ["a", "a\nbb\nc", "a"]
    assert [t.output for t in batch.texts] == ["bb", "d", "bb"]
    assert batch.turns.tolist() == [1, 2, 1]
    assert batch.session[0] == batch.session[1] != batch.session[2]


def test_openai_log_nested(tmp_path):
    path = tmp_path / "log.jsonl"
    row = {
        "request": {
            "model": "m",
            "messages": [
                {"role": "system", "content": "be kind"},
                {"role": "user", "content": [{"type": "text", "text": "hello"}]},
            ],
        },
        "response": {
            "created": 1700000000,
            "choices": [{"finish_reason": "length", "message": {"role": "assistant", "content": "hi"}}],
            "usage": {"prompt_tokens": 12, "completion_tokens": 3},
        },
        "latency_ms": 250,
    }
    path.write_text(lines(row))
    reader, batch = one(path)
    assert reader.mapped.name == "openai-log"
    assert (batch.prompt_tokens[0], batch.output_tokens[0]) == (12, 3)
    assert batch.arrival_s[0] == 1700000000
    assert batch.duration_s[0] == pytest.approx(0.25)
    assert batch.truncated[0]
    turn = batch.texts[0]
    assert (turn.prompt, turn.output, turn.system, turn.last) == ("be kind\nhello", "hi", "be kind", "hello")


def test_openai_batch_output_file(tmp_path):
    path = tmp_path / "batch.jsonl"
    body = {"created": 1700000000, "usage": {"prompt_tokens": 7, "completion_tokens": 2}}
    path.write_text(lines({"custom_id": "1", "response": {"status_code": 500, "body": body}, "error": None}))
    _, batch = one(path)
    assert (batch.prompt_tokens[0], batch.output_tokens[0], batch.failed[0]) == (7, 2, True)


@pytest.mark.parametrize(
    ("row", "name", "prompt", "output"),
    [
        ({"task_id": 1, "prompt": "a b", "output_tokens": 9}, "trtllm-bench", None, 9),
        ({"task_id": 1, "input_ids": [5, 6, 7], "output_tokens": 9}, "trtllm-bench", 3, 9),
        ({"prompt": "a b", "prompt_tokens_count": 2, "output_tokens_count": 4}, "guidellm", 2, 4),
        ({"input_length": 5, "output_length": 6, "timestamp": 10}, "aiperf", 5, 6),
        ({"prompt": "a b"}, "prompts", None, None),  # vLLM's custom data set
    ],
)
def test_benchmark_datasets(tmp_path, row, name, prompt, output):
    path = tmp_path / "data.jsonl"
    path.write_text(lines(row, row))
    reader, batch = one(path)
    assert reader.mapped.name == name
    assert batch.prompt_tokens[0] == (-1 if prompt is None else prompt)
    assert batch.output_tokens[0] == (-1 if output is None else output)


def test_aiperf_multi_turn(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(
        lines({"session_id": "s", "turns": [{"text": "one", "timestamp": 1000}, {"text": "two"}]})
    )
    reader, batch = one(path)
    assert reader.mapped.name == "aiperf-multi-turn"
    assert [t.prompt for t in batch.texts] == ["one", "one\ntwo"]
    assert batch.turns.tolist() == [1, 2]


def test_map_names_unknown_columns(tmp_path):
    path = tmp_path / "odd.csv"
    path.write_text("when_ms;size;made\n1000;5;6\n2500;7;8\n")
    with pytest.raises(ConfigError, match="--map prompt=COLUMN"):
        open_trace(path, ReadOptions())
    _, batch = one(path, map={"prompt": "size", "output": "made", "arrival": "when_ms"})
    assert batch.prompt_tokens.tolist() == [5, 7]
    assert batch.arrival_s.tolist() == [1, 2.5]
    with pytest.raises(ConfigError, match="no such column"):
        open_trace(path, ReadOptions(map={"prompt": "nope"}))


def test_map_reaches_into_json(tmp_path):
    path = tmp_path / "odd.jsonl"
    path.write_text(lines({"m": {"in": 3, "out": [4]}}))
    _, batch = one(path, map={"prompt": "m.in", "output": "m.out.0"})
    assert (batch.prompt_tokens[0], batch.output_tokens[0]) == (3, 4)


def test_parquet_with_typed_columns(tmp_path):
    path = tmp_path / "trace.parquet"
    frame = pl.DataFrame(
        {
            "timestamp": [1.5, 2.5, None],
            "prompt_tokens": [10, -1, 30],
            "completion_tokens": [1, 2, 3],
        }
    )
    frame.write_parquet(path)
    _, batch = one(path)
    assert batch.prompt_tokens.tolist() == [10]
    assert [(b.line, b.reason) for b in batch.bad] == [
        (2, "prompt_tokens: negative"),
        (3, "timestamp: missing, or not a time"),
    ]


def test_parquet_datetimes(tmp_path):
    path = tmp_path / "trace.parquet"
    times = pl.Series("ts", ["2024-01-01T00:00:00", "2024-01-01T00:00:01.5"]).str.to_datetime()
    pl.DataFrame({"ts": times, "prompt_tokens": [1, 2], "output_tokens": [1, 2]}).write_parquet(path)
    reader, batch = one(path)
    assert batch.arrival_s.tolist() == [1704067200, 1704067201.5]
    assert reader.times.absolute


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_compressed(tmp_path, kind):
    path = tmp_path / f"trace.csv.{kind}"
    data = AZURE.encode()
    path.write_bytes(gzip.compress(data) if kind == "gz" else zstandard.compress(data))
    _, batch = one(path)
    assert batch.prompt_tokens.tolist() == [4808, 3180]


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_cut_off_archive_is_partial_not_lost(tmp_path, kind):
    rng = np.random.default_rng(0)
    rows = "".join(f"{i},{a},{b}\n" for i, (a, b) in enumerate(rng.integers(1, 10**6, (200_000, 2)).tolist()))
    data = ("timestamp,prompt_tokens,output_tokens\n" + rows).encode()
    packed = gzip.compress(data) if kind == "gz" else zstandard.compress(data)
    path = tmp_path / f"trace.{kind}"
    path.write_bytes(packed[: len(packed) * 9 // 10])
    record = audit(path)
    assert 1000 < record.trace.requests < 200_000
    assert "cut off" in record.trace.partial


def test_header_only_and_empty_and_missing(tmp_path):
    empty, header, blank = tmp_path / "e.csv", tmp_path / "h.csv", tmp_path / "b.csv"
    empty.write_bytes(b"")
    header.write_text("timestamp,prompt_tokens,output_tokens\n")
    blank.write_text("\n\n")
    with pytest.raises(DataError, match="is empty"):
        audit(empty)
    with pytest.raises(DataError, match="not one row"):
        audit(header)
    with pytest.raises(DataError, match="no text"):
        audit(blank)
    with pytest.raises(ConfigError, match="cannot read"):
        audit(tmp_path / "missing.csv")
    with pytest.raises(ConfigError, match="folder"):
        audit(tmp_path)


@pytest.mark.parametrize("data", [bytes(range(256)) * 9, "a,b\n1,2\n".encode("utf-16")])
def test_what_is_no_text_is_refused(tmp_path, data):
    path = tmp_path / "x.csv"
    path.write_bytes(data)
    with pytest.raises(DataError, match="not UTF-8 text"):
        audit(path)


def test_access_log_names(tmp_path):
    """A server's JSON lines: what OpenAI calls the counts, and this project's unit suffixes."""
    path = tmp_path / "access.jsonl"
    row = {"time": 1700000000.5, "prompt_tokens": 5, "completion_tokens": 7, "ttft_s": 0.1, "e2e_s": 0.4}
    path.write_text(
        lines({**row, "status": 200, "finish_reason": "stop"}, {**row, "status": 503, "finish_reason": None})
    )
    _, batch = one(path)
    assert (batch.ttft_s.tolist(), batch.duration_s.tolist()) == ([0.1, 0.1], [0.4, 0.4])
    assert (batch.failed.tolist(), batch.truncated.tolist()) == ([False, True], [False, False])


def test_one_row(tmp_path):
    path = tmp_path / "one.csv"
    path.write_text("timestamp,prompt_tokens,output_tokens\n5,10,3\n")
    record = audit(path)
    assert record.trace.requests == 1
    assert record.arrivals.rate_per_s is None
    assert record.lengths.prompt.p99.value == 10
    assert [n.key for n in record.notes][-1] == "one_row"


def test_bad_rows_are_counted_with_their_lines(tmp_path):
    path = tmp_path / "bad.csv"
    path.write_bytes(
        b"timestamp,prompt_tokens,output_tokens\n"
        b"1,10,3\n"
        b"2,-4,3\n"  # 3
        b"3,,3\n"  # 4
        b"4,ten,3\n"  # 5
        b"5,10\n"  # 6
        b"\n"
        b"yesterday,10,3\n"  # 8
        b"7,1\xff0,3\n"  # 9
        b"8,10.5,3\n"  # 10
        b"9,99999999999,3\n"  # 11
        b'10,"12",4\n'
        b"11,10.0,5\n"
    )
    _, batch = one(path)
    assert batch.prompt_tokens.tolist() == [10, 12, 10]
    assert sorted((b.line, b.reason) for b in batch.bad) == [
        (3, "prompt_tokens: negative"),
        (4, "prompt_tokens: missing"),
        (5, "prompt_tokens: not a whole number"),
        (6, "2 fields where the header has 3"),
        (8, "timestamp: missing, or not a time"),
        (9, "broken UTF-8"),
        (10, "prompt_tokens: not a whole number"),
        (11, "prompt_tokens: more than 4,194,304 tokens"),
    ]
    record = audit(path)
    assert record.trace.unreadable == 8
    with pytest.raises(DataError, match=r"bad.csv line \d+: .*--strict"):
        audit(path, strict=True)


def test_plain_block_and_slow_block_agree(tmp_path):
    """A stray quote makes a block go row by row: the figures must not change."""
    rows = [f"{i},{i % 97 + 1},{i % 13 + 1}" for i in range(500)]
    plain, quoted = tmp_path / "a.csv", tmp_path / "b.csv"
    plain.write_text("timestamp,prompt_tokens,output_tokens\n" + "\n".join(rows) + "\n")
    quoted.write_text(
        "timestamp,prompt_tokens,output_tokens\n"
        + "\n".join([*rows[:-1], f'"499","{499 % 97 + 1}","{499 % 13 + 1}"'])
    )
    first, second = audit(plain), audit(quoted)
    assert first.lengths == second.lengths
    assert first.arrivals == second.arrivals


def test_bad_json_rows(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(
        b'{"timestamp": 1, "prompt_tokens": 4, "completion_tokens": 2}\n'
        b'{"timestamp": 2, "prompt_tokens": -4, "completion_tokens": 2}\n'
        b'{"timestamp": 3, "prompt_tokens": 4\n'
        b"[1, 2]\n"
        b'{"timestamp": 4, "prompt_tokens": 4, "completion_tokens": null}\n'
        b'{"timestamp": "x", "prompt_tokens": 4, "completion_tokens": 2}\n'
        b'{"timestamp": 5, "prompt_tokens": "\xff", "completion_tokens": 2}\n'
        b"timestamp,prompt_tokens\n"  # mixed formats in one file
        b'{"timestamp": 6, "prompt_tokens": "5", "completion_tokens": 2}\n'
    )
    _, batch = one(path)
    assert batch.prompt_tokens.tolist() == [4, 5]
    assert [b.line for b in batch.bad] == [2, 3, 4, 5, 6, 7, 8]
    assert "negative" in batch.bad[0].reason
    assert "not JSON" in batch.bad[1].reason


def test_broken_array_says_that_the_rest_is_lost(tmp_path):
    path = tmp_path / "a.json"
    talk = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    path.write_text("[" + json.dumps(talk) + ",\n{broken}, " + json.dumps(talk) + "]")
    _, batch = one(path)
    assert len(batch) == 1
    assert batch.bad[0].line == 2
    assert "nothing after it was read" in batch.bad[0].reason


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2024-03-01T12:00:00Z", 1709294400),
        ("2024-03-01T12:00:00+02:00", 1709287200),
        ("2024-03-01 12:00:00.25", 1709294400.25),
        ("2024-03-01", 1709251200),
        ("1709294400", 1709294400),
        ("1709294400000", 1709294400),
        ("1709294400000000", 1709294400),
    ],
)
def test_times_in_every_spelling(tmp_path, text, seconds):
    path = tmp_path / "t.csv"
    path.write_text(f"timestamp,prompt_tokens,output_tokens\n{text},1,1\n")
    _, batch = one(path)
    assert batch.arrival_s[0] == pytest.approx(seconds, abs=1e-3)


def test_time_zones(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        "timestamp,prompt_tokens,output_tokens\n2024-03-01 12:00:00,1,1\n2024-03-01T12:00:00+00:00,1,1\n"
    )
    _, batch = one(path, timezone="Europe/Paris")
    assert batch.arrival_s.tolist() == [1709290800, 1709294400]
    assert audit(path).notes[0].key == "zones_mixed"
    with pytest.raises(ConfigError, match="no such time zone"):
        audit(path, read=ReadOptions(timezone="Mars/Olympus"))


def test_unsorted_and_repeated_times(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("timestamp,prompt_tokens,output_tokens\n4,1,1\n0,1,1\n2,1,1\n2,1,1\n")
    record = audit(path)
    assert record.arrivals.span_s == 4
    assert record.arrivals.rate_per_s.value == pytest.approx(3 / 4)
    assert (record.arrivals.out_of_order, record.arrivals.repeated) == (1, 1)


def test_text_without_counts_asks_for_a_tokenizer(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(lines({"prompt": "hello"}))
    with pytest.raises(ConfigError, match="--tokenizer"):
        audit(path)


def test_csv_without_header(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("0.5,10,3\n1.5,20,4\n")
    _, batch = one(path, map={"arrival": "0", "prompt": "1", "output": "2"})
    assert batch.prompt_tokens.tolist() == [10, 20]
    assert batch.arrival_s.tolist() == [0.5, 1.5]


def test_two_columns_of_one_name(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,a\n1,2\n")
    with pytest.raises(DataError, match="two columns"):
        open_trace(path, ReadOptions())


def test_ctrl_c_keeps_a_labelled_partial_result(tmp_path):
    path = tmp_path / "t.jsonl"
    row = {"timestamp": 1, "prompt_tokens": 4, "completion_tokens": 2}
    path.write_text(lines(*[row] * 40_000))

    def stop(done, total, rows):
        if rows >= 16_000:
            raise KeyboardInterrupt

    record, _ = audit_trace([path], AuditOptions(), stop)
    assert record.trace.partial == "interrupted"
    assert 16_000 <= record.trace.requests < 40_000
