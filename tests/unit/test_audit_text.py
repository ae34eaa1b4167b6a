"""The pass over texts: counts are the tokenizer's own, blocks share exactly what prompts share, the diet finds what was planted."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from inferoptim.audit.diet import squeeze
from inferoptim.audit.options import ReadOptions
from inferoptim.audit.run import AuditOptions, audit_trace
from inferoptim.audit.text_cost import parallel_text, tokenizer_record
from inferoptim.audit.text_pass import TextPass, chained_blocks
from inferoptim.audit.token_counter import LibraryTokens, open_tokenizer
from inferoptim.bench import corpus
from inferoptim.errors import ConfigError, DataError, UnsupportedError
from tests.bpe import save_bpe_tokenizer

SECRET = "Zanzibar-Quokka"


@pytest.fixture(scope="module")
def counter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_bpe_tokenizer(folder, bos=True)
    return open_tokenizer(str(folder))


def chat(system, question, answer="fine", between=()):
    messages = [{"role": "system", "content": system}] if system else []
    messages += [*between, {"role": "user", "content": question}]
    return {
        "messages": messages,
        "response": {"choices": [{"message": {"role": "assistant", "content": answer}}]},
    }


def save(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def diet(path, counter, **options):
    record, _ = audit_trace([path], AuditOptions(tokenizers=(counter,), **options))
    return record, {finding.kind: finding for finding in record.text.diet}


def test_lengths_are_the_tokenizers_own(tmp_path, counter):
    texts = [*corpus.paragraphs("en"), *corpus.paragraphs("fr")]
    path = save(tmp_path / "p.jsonl", [chat("", text, text[:40]) for text in texts])
    record, _ = audit_trace([path], AuditOptions(tokenizers=(counter,)))
    expected = [len(counter.backend.encode(t, add_special_tokens=False).ids) for t in texts]
    assert record.lengths.prompt.mean.value == pytest.approx(np.mean(expected))
    assert record.lengths.prompt.maximum == max(expected)
    assert record.lengths.output.n == len(texts)
    assert {s.code for s in record.languages} == {"en", "fr"}
    assert record.prefix.basis == "tokens"


def test_usage_wins_over_counting(tmp_path, counter):
    row = {**chat("", "hello there"), "usage": {"prompt_tokens": 77, "completion_tokens": 3}}
    path = save(tmp_path / "p.jsonl", [row] * 3)
    record, _ = audit_trace([path], AuditOptions(tokenizers=(counter,)))
    assert (record.lengths.prompt.maximum, record.lengths.output.maximum) == (77, 3)
    without, _ = audit_trace([path], AuditOptions())
    assert without.lengths == record.lengths
    assert without.text is None


def test_prompts_alone_have_unknown_outputs(tmp_path, counter):
    path = save(tmp_path / "p.jsonl", [{"prompt": "a b c"}, {"prompt": "d"}])
    record, _ = audit_trace([path], AuditOptions(tokenizers=(counter,)))
    assert record.lengths.prompt.n == 2
    assert record.lengths.output is None
    assert record.lengths.prompt_per_output is None
    assert next(x for x in record.levers if x.lever == "paged_kv").missing == ("output",)


def test_blocks_are_equal_exactly_as_far_as_sequences_are():
    rng = np.random.default_rng(0)
    salts = rng.integers(1, 2**63, 16, dtype=np.uint64) | np.uint64(1)
    base = rng.integers(0, 50_000, 100).astype(np.uint32)
    other = base.copy()
    other[40] += 1  # in block 2
    swapped = base.copy()
    swapped[:32] = np.concatenate([base[16:32], base[:16]])  # the same blocks in another order
    a, b, c, d, e = chained_blocks([base, other, swapped, base[:47], base[:5]], 16, salts)
    assert [len(x) for x in (a, b, c, d, e)] == [6, 6, 6, 2, 0]
    assert (a == b).tolist() == [True, True, False, False, False, False]
    assert not (a == c).any()
    assert (a[:2] == d).all()
    assert len(set(a.tolist())) == 6


def test_planted_prefix_reuse_in_text(tmp_path, counter):
    """Every request begins with one system prompt: all of its whole blocks are found, from the second request on."""
    system = corpus.paragraphs("en")[0]
    rows = [chat(system, f"{i} {corpus.paragraphs('fr')[i % 9]}") for i in range(60)]
    record, _ = audit_trace([save(tmp_path / "p.jsonl", rows)], AuditOptions(tokenizers=(counter,)))
    n = len(counter.ids([system])[0])
    total = record.lengths.prompt.mean.value * 60
    low, high = 59 * (n // 16) * 16 / total, 59 * (n + 16) / total
    assert low <= record.prefix.reusable.value <= high


def test_diet_finds_shared_system_prompts_and_prices_them(tmp_path, counter):
    system = corpus.paragraphs("en")[1]
    path = save(tmp_path / "p.jsonl", [chat(system, f"question {i}?") for i in range(40)])
    record, found = diet(path, counter, price_per_million=2.0)
    shared = found["shared_prefix"]
    n = int(counter.lengths([system])[0])
    assert (shared.requests, shared.tokens) == (40, 39 * n)
    assert shared.saved == pytest.approx(39 * n * 2e-6)
    assert "varying_prefix" not in found
    assert record.text.price_per_million == 2.0


def test_diet_finds_what_varies_early(tmp_path, counter):
    system = corpus.paragraphs("en")[2]
    rows = [chat(f"Today is day {i} of the year. {system}", "hello?") for i in range(100, 150)]
    _, found = diet(save(tmp_path / "p.jsonl", rows), counter)
    varying = found["varying_prefix"]
    assert varying.requests == 50
    assert varying.detail["variants"] == 50
    assert varying.detail["first_difference"] <= len("Today is day 10")
    assert varying.saved is None
    late = [chat(f"{system} Today is day {i} of the year.", "hello?") for i in range(100, 150)]
    assert "varying_prefix" not in diet(save(tmp_path / "q.jsonl", late), counter)[1]


def test_diet_measures_white_space_with_the_tokenizer(tmp_path, counter):
    rows = [chat("", f"one {i}   two\n\n\n\n\nthree    \nfour      five") for i in range(30)]
    _, found = diet(save(tmp_path / "p.jsonl", rows), counter)
    text = rows[0]["messages"][0]["content"]
    before, after = counter.lengths([text, squeeze(text)]).tolist()
    assert found["whitespace"].share == pytest.approx((before - after) / before, abs=0.02)
    assert squeeze("a:\n    b\n\n    c") == "a:\n    b\n\n    c"  # indentation and single blank lines stay


def test_diet_finds_heavy_few_shot_blocks(tmp_path, counter):
    shots = [
        {"role": "user", "content": corpus.paragraphs("en")[3]},
        {"role": "assistant", "content": corpus.paragraphs("en")[4]},
    ]
    path = save(tmp_path / "p.jsonl", [chat("Be brief.", f"{i}?", between=shots) for i in range(20)])
    _, found = diet(path, counter)
    assert found["few_shot"].requests == 20
    assert found["few_shot"].share > 0.5


def test_redaction_is_the_default_and_no_text_stays(tmp_path, counter):
    system = f"{SECRET} is the code word. " + corpus.paragraphs("en")[5]
    path = save(tmp_path / "p.jsonl", [chat(system, f"{SECRET} {i}", SECRET) for i in range(30)])
    record, _ = diet(path, counter)
    assert SECRET not in record.model_dump_json()
    shown, _ = diet(path, counter, redact=False)
    assert SECRET in shown.model_dump_json()
    assert not shown.trace.redacted


def test_characters_where_there_is_no_tokenizer(tmp_path):
    row = {
        **chat(corpus.paragraphs("en")[0], "hello"),
        "usage": {"prompt_tokens": 100, "completion_tokens": 3},
    }
    record, _ = audit_trace([save(tmp_path / "p.jsonl", [row] * 4)], AuditOptions())
    assert record.prefix.basis == "characters"
    length = len(corpus.paragraphs("en")[0]) + 6
    assert record.prefix.reusable.value == pytest.approx(0.75 * (length // 64 * 64) / length)


def test_the_shipped_parallel_text_is_parallel(counter):
    text = parallel_text()
    assert len(text["en"]) == len(text["fr"]) == 24
    found = tokenizer_record(counter, text, {"fr": ["bonjour à tous"]}, ttft_s=0.1)
    by_code = {cost.code: cost.tokens_per_character for cost in found.parallel}
    english, french = (counter.lengths(text[code]).sum() for code in ("en", "fr"))
    assert by_code["en"].value == pytest.approx(english / sum(map(len, text["en"])))
    extra = found.extra_over_english["fr"]
    assert extra.value == pytest.approx(french / english - 1)
    assert extra.low < extra.value < extra.high
    assert [p.tokens for p in found.latency] == [16, 128, 1024, 8192]
    assert all(p.encode_p50_s <= p.encode_p95_s for p in found.latency)
    assert found.latency[0].ttft_share == pytest.approx(found.latency[0].encode_p50_s / 0.1)


def test_parallel_files_must_match(tmp_path):
    english, french = tmp_path / "en.txt", tmp_path / "fr.txt"
    english.write_text("one\ntwo\n")
    french.write_text("un\n")
    with pytest.raises(ConfigError, match="2 English lines and 1 French"):
        parallel_text(english, french)
    with pytest.raises(ConfigError, match="both files"):
        parallel_text(english)
    with pytest.raises(ConfigError, match="cannot read"):
        parallel_text(english, tmp_path / "none")


def test_mistral_common_offline():
    pytest.importorskip("mistral_common", reason="mistral-common is not installed (extra: tokens)")
    tokens = open_tokenizer("mistral:tekken")
    assert tokens.vocabulary == 131_072
    ids = tokens.ids(["Bonjour tout le monde"])[0]
    assert tokens.decode(ids.tolist()) == "Bonjour tout le monde"
    assert tokens.lengths(["Bonjour tout le monde"])[0] == len(ids)


def test_tiktoken_from_a_local_file(tmp_path):
    pytest.importorskip("tiktoken", reason="tiktoken is not installed (extra: tokens)")
    ranks = [bytes([i]) for i in range(256)] + [b"he", b"hel", b"lo", b" w"]
    path = tmp_path / "cl100k_tiny.tiktoken"
    path.write_text("".join(f"{base64.b64encode(t).decode()} {i}\n" for i, t in enumerate(ranks)))
    tokens = open_tokenizer(str(path))
    assert tokens.ids(["hello w"])[0].tolist() == [257, 258, 259]
    assert tokens.lengths(["hello w", ""]).tolist() == [3, 0]
    assert tokens.decode([257, 258]) == "hello"
    unknown = tmp_path / "mine.tiktoken"
    unknown.write_bytes(path.read_bytes())
    with pytest.raises(UnsupportedError, match="split pattern"):
        open_tokenizer(str(unknown))
    with pytest.raises(ConfigError, match="no such file"):
        open_tokenizer(str(tmp_path / "none.tiktoken"))


def test_broken_tokenizer_file(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(DataError, match="not a readable tokenizer"):
        open_tokenizer(str(path))


def test_block_ids_of_two_runs_do_not_match(counter):
    assert isinstance(counter, LibraryTokens)
    ids = counter.ids([corpus.paragraphs("en")[0]])
    a, b = (TextPass(ReadOptions(), counter, redact=True) for _ in range(2))
    first, second = chained_blocks(ids, 16, a._salts)[0], chained_blocks(ids, 16, b._salts)[0]
    assert not set(first.tolist()) & set(second.tolist())
