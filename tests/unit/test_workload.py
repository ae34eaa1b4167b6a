"""Workloads: exact where they promise it, the same for one seed, nothing shared by accident, bad files refused."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest

from inferoptim.bench import chats, corpus, workload
from inferoptim.errors import ConfigError
from inferoptim.models.tokenizer import Tokenizer, load_tokenizer
from tests.bpe import save_bpe_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("bpe")
    save_bpe_tokenizer(folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def base_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """With a BOS and without a chat template, as a Llama base model."""
    folder = tmp_path_factory.mktemp("base")
    save_bpe_tokenizer(folder, bos=True, template=False)
    return load_tokenizer(folder)


CASES: list[tuple[str, dict[str, int]]] = [
    ("guide", {}),
    ("chat", {}),
    ("summarise", {}),
    ("synthetic:50/7", {}),
]


@pytest.mark.parametrize(("name", "lengths"), CASES)
def test_one_seed_is_one_workload(tokenizer: Tokenizer, name: str, lengths: dict[str, int]) -> None:
    first = workload.build(name, tokenizer, num_requests=10, seed=3, **lengths)
    assert first == workload.build(name, tokenizer, num_requests=10, seed=3, **lengths)
    assert (
        first.fingerprint != workload.build(name, tokenizer, num_requests=10, seed=4, **lengths).fingerprint
    )
    assert first.fingerprint != workload.build(name, tokenizer, num_requests=9, seed=3, **lengths).fingerprint
    assert len(first.requests) == 10


@pytest.mark.parametrize(("name", "lengths"), CASES)
def test_no_prompt_comes_twice(tokenizer: Tokenizer, name: str, lengths: dict[str, int]) -> None:
    requests = workload.build(name, tokenizer, num_requests=96, seed=0, **lengths).requests
    assert len({r.prompt_token_ids for r in requests}) == 96


def test_guide_is_100_in_200_out_of_real_text_in_both_languages(tokenizer: Tokenizer) -> None:
    built = workload.build("guide", tokenizer, num_requests=8, seed=0)
    assert {(len(r.prompt_token_ids), r.max_tokens) for r in built.requests} == {(100, 200)}
    assert built.longest_tokens == 300
    assert (built.prompt_tokens, built.output_tokens) == (800, 1600)
    assert [r.tag for r in built.requests] == ["en", "fr"] * 4
    for request in built.requests:
        prose = "\n\n".join(corpus.paragraphs("en" if request.tag == "en" else "fr"))
        # a cut inside a character shows as U+FFFD at the end
        assert tokenizer.decode(request.prompt_token_ids).rstrip("\ufffd") in prose + "\n\n" + prose


@pytest.mark.parametrize("length", [2, 16, 777, 2000])
def test_guide_keeps_the_length_asked(base_tokenizer: Tokenizer, length: int) -> None:
    built = workload.build("guide", base_tokenizer, num_requests=2, seed=1, input_tokens=length)
    assert [len(r.prompt_token_ids) for r in built.requests] == [length, length]
    assert all(r.prompt_token_ids[0] == base_tokenizer.bos_token_id for r in built.requests)


def test_guide_makes_no_prompt_twice_even_when_asked_to(base_tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="different prompts of 1 tokens"):  # a BOS, and nothing else
        workload.build("guide", base_tokenizer, num_requests=2, input_tokens=1)


def test_guide_prompts_share_no_prefix_that_a_cache_could_use(tokenizer: Tokenizer) -> None:
    requests = workload.build("guide", tokenizer, num_requests=32, seed=0).requests
    for a, b in combinations(requests, 2):
        assert a.prompt_token_ids[:16] != b.prompt_token_ids[:16]


def test_guide_text_has_an_end(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="use synthetic:100000/OUT"):
        workload.build("guide", tokenizer, num_requests=1, input_tokens=100_000)


def test_chat_shares_its_system_prompt_and_mixes_lengths(tokenizer: Tokenizer) -> None:
    requests = workload.build("chat", tokenizer, num_requests=40, seed=0).requests
    english = [r for r in requests if r.tag == "en"]
    system = len(tokenizer.encode("<|system|>" + chats.SYSTEM["en"], add_special_tokens=False))
    assert len({r.prompt_token_ids[:system] for r in english}) == 1
    assert max(len(r.prompt_token_ids) for r in english) > 2 * min(len(r.prompt_token_ids) for r in english)
    outputs = sorted(r.max_tokens for r in requests)
    assert outputs[0] >= 16
    assert outputs[-1] <= 256
    assert outputs[20] == pytest.approx(64, rel=0.1)
    end = tokenizer.token_to_id("<|assistant|>")
    assert all(r.prompt_token_ids[-1] == end for r in requests)


def test_chat_asks_for_the_same_total_whatever_the_seed(tokenizer: Tokenizer) -> None:
    totals = {workload.build("chat", tokenizer, num_requests=24, seed=s).output_tokens for s in range(4)}
    assert len(totals) == 1
    fixed = workload.build("chat", tokenizer, num_requests=4, output_tokens=9)
    assert {r.max_tokens for r in fixed.requests} == {9}


def test_a_base_model_chats_in_plain_words_and_the_reader_is_told(base_tokenizer: Tokenizer) -> None:
    built = workload.build("chat", base_tokenizer, num_requests=2, seed=0)
    assert "no chat template" in built.notes[0]
    assert base_tokenizer.decode(built.requests[0].prompt_token_ids).endswith("Assistant:")


@pytest.mark.parametrize("most", [300, 900])
def test_summarise_fills_the_prompt_and_never_passes_it(tokenizer: Tokenizer, most: int) -> None:
    requests = workload.build("summarise", tokenizer, num_requests=6, seed=0, input_tokens=most).requests
    assert all(most - 120 < len(r.prompt_token_ids) <= most for r in requests)
    text = tokenizer.decode(requests[0].prompt_token_ids)
    quoted = [s.strip() for p in corpus.paragraphs("en") for s in corpus.sentences(p) if s.strip() in text]
    assert len(quoted) >= 3, "the document must stand in the prompt for a lookup to find"


@pytest.mark.parametrize(("most", "what"), [(20, "one sentence"), (100_000, "at most")])
def test_summarise_refuses_what_it_cannot_make(tokenizer: Tokenizer, most: int, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        workload.build("summarise", tokenizer, num_requests=1, input_tokens=most)


def test_synthetic_is_exact_and_has_no_special_token(tokenizer: Tokenizer) -> None:
    built = workload.build("synthetic", tokenizer, num_requests=50, input_tokens=333, output_tokens=11)
    assert (
        built.requests
        == workload.build(
            "synthetic", tokenizer, num_requests=50, input_tokens=333, output_tokens=11
        ).requests
    )
    for request in built.requests:
        assert (len(request.prompt_token_ids), request.max_tokens) == (333, 11)
        assert not tokenizer.special_ids & set(request.prompt_token_ids)


def test_sentences_lose_nothing() -> None:
    for language in corpus.LANGUAGES:
        assert len(corpus.paragraphs(language)) >= 24
        assert len(set(corpus.paragraphs(language))) == len(corpus.paragraphs(language))
        for paragraph in corpus.paragraphs(language):
            assert "".join(corpus.sentences(paragraph)) == paragraph
            assert len(corpus.sentences(paragraph)) >= 2, paragraph


@pytest.mark.parametrize(
    ("name", "fields", "what"),
    [
        ("nonsense", {"num_requests": 1}, "neither guide, chat, chat-short, summarise, synthetic nor a file"),
        ("guide", {}, "say how many"),
        ("guide", {"num_requests": 0}, "at least 1"),
        ("chat", {"num_requests": 1, "input_tokens": 5}, "mixed lengths"),
        ("synthetic", {"num_requests": 1, "input_tokens": 5}, "synthetic:IN/OUT"),
        ("synthetic:5/5", {"num_requests": 1, "input_tokens": 5}, "already states"),
        ("synthetic:0/5", {"num_requests": 1}, "at least 1"),
        (
            "guide",
            {"num_requests": 2, "max_model_len": 299},
            "guide, request 1: 100 prompt tokens and 200 new",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(
    tokenizer: Tokenizer, name: str, fields: dict[str, int], what: str
) -> None:
    with pytest.raises(ConfigError, match=what):
        workload.build(name, tokenizer, **fields)


# --- files of prompts ---------------------------------------------------------------------------------------------


def test_a_text_file_is_one_prompt_a_line(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffFirst prompt.\r\n\n  \nDeuxième, à la ligne\u2028coupée.".encode())
    built = workload.build(path, tokenizer, output_tokens=5)
    assert [tokenizer.decode(r.prompt_token_ids) for r in built.requests] == [
        "First prompt.",
        "Deuxième, à la ligne\u2028coupée.",  # U+2028 ends no line of a text file
    ]
    assert [r.source for r in built.requests] == [f"{path} line 1", f"{path} line 4"]
    assert {r.max_tokens for r in built.requests} == {5}
    assert built.name == "prompts.txt"


def test_jsonl_takes_text_messages_and_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    lines = [
        {"prompt": "Hello there", "max_tokens": 4, "arrival_s": 0, "tag": "en"},
        {"messages": [{"role": "user", "content": "Bonjour"}], "arrival_s": 0.5},
        {"prompt_token_ids": [7, 8, 9], "arrival_s": 1.5},
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    text, chat, ids = workload.build(path, tokenizer).requests
    assert (tokenizer.decode(text.prompt_token_ids), text.max_tokens, text.arrival_s, text.tag) == (
        "Hello there",
        4,
        0.0,
        "en",
    )
    assert tokenizer.decode(chat.prompt_token_ids, skip_special=False) == "<|user|>Bonjour</s><|assistant|>"
    assert (ids.prompt_token_ids, ids.max_tokens, ids.arrival_s) == ((7, 8, 9), 128, 1.5)


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        ("{", "line 3: not JSON"),
        ('"text"', "line 3: a JSON object"),
        ("{}", "line 3: exactly one of"),
        ('{"prompt": "a", "prompt_token_ids": [1]}', "line 3: exactly one of"),
        ('{"prompt": ""}', "line 3: prompt must be"),
        ('{"promt": "a"}', "line 3: no such field 'promt'"),
        ('{"prompt": "a", "max_tokens": 0}', "line 3: max_tokens"),
        ('{"prompt": "a", "max_tokens": true}', "line 3: max_tokens"),
        ('{"prompt": "a", "arrival_s": -1}', "line 3: arrival_s"),
        ('{"prompt": "a", "arrival_s": NaN}', "line 3: arrival_s"),
        ('{"prompt": "a", "tag": 3}', "line 3: tag"),
        ('{"prompt_token_ids": [5, 999999]}', "line 3: prompt_token_ids: 999999"),
        ('{"prompt_token_ids": []}', "line 3: prompt_token_ids must be"),
        ('{"messages": [{"role": "user"}]}', "line 3: messages: each needs role and content"),
        ('{"prompt": "\\ud800"}', "line 3: .*not valid Unicode"),
        ('{"prompt": "a", "arrival_s": 1}', "line 1: no arrival_s"),
    ],
)
def test_a_bad_line_is_named(tokenizer: Tokenizer, tmp_path: Path, bad: str, what: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "fine"}\n\n' + bad + "\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=what):
        workload.build(path, tokenizer)


def test_unreadable_files_are_refused(
    tokenizer: Tokenizer, base_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(b"fine\nfine\n\xff\xfe bad\n")
    with pytest.raises(ConfigError, match="line 3: not UTF-8"):
        workload.build(path, tokenizer)
    path.write_text("\n \n")
    with pytest.raises(ConfigError, match="no prompt in it"):
        workload.build(path, tokenizer)
    path = tmp_path / "p.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "x"}]}')
    with pytest.raises(ConfigError, match="line 1: messages, but this model has no chat template"):
        workload.build(path, base_tokenizer)


def test_a_long_prompt_of_a_file_is_named_by_its_line(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("short\n" + "word " * 500)
    with pytest.raises(
        ConfigError, match=r"p\.txt line 2: \d+ prompt tokens and 5 new ones exceed the context of 64"
    ):
        workload.build(path, tokenizer, output_tokens=5, max_model_len=64)


def test_repeating_a_file_is_said(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a", "arrival_s": 0}\n{"prompt": "b", "arrival_s": 2}\n')
    built = workload.build(path, tokenizer, num_requests=5)
    assert [r.arrival_s for r in built.requests] == [0, 2, 2, 4, 4]
    assert "prefix caching gains from the repeats" in built.notes[0]
    assert "first 1 of 2" in workload.build(path, tokenizer, num_requests=1).notes[0]
