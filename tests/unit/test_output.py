"""Text from tokens: stop strings that span tokens, held-back text, cut output."""

from __future__ import annotations

import pytest

from inferoptim.config import SamplingParams
from inferoptim.engine.output import TextStream


class Letters:
    """A detokeniser of one letter a token, so that stop strings always span tokens."""

    def __init__(self, _tokenizer: object) -> None:
        pass

    def append(self, ids: tuple[int, ...]) -> str:
        return "".join(chr(i) for i in ids)

    def flush(self) -> str:
        return ""


@pytest.fixture(autouse=True)
def letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferoptim.engine.output.IncrementalDetokenizer", Letters)


def feed(text: str, chunk: int = 1, **sampling: object) -> tuple[str, list[str], int, bool]:
    stream = TextStream(None, SamplingParams.create(max_tokens=1000, **sampling))  # type: ignore[arg-type]
    deltas, used = [], 0
    for i in range(0, len(text), chunk):
        piece = tuple(ord(c) for c in text[i : i + chunk])
        used += stream.append(piece)
        deltas.append(stream.take(finished=stream.stopped))
        if stream.stopped:
            break
    else:
        stream.finish()
        deltas.append(stream.take(finished=True))
    return stream.text, deltas, used, stream.stopped


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_a_stop_string_ends_the_text_wherever_tokens_fall(chunk: int):
    text, deltas, used, stopped = feed("hello STOP world", chunk, stop=("STOP",))
    assert (text, stopped) == ("hello ", True)
    assert "".join(deltas) == "hello "
    assert used == len("hello STOP"), "tokens after the stop string are not part of the output"


def test_nothing_of_a_stop_string_is_shown_before_it_is_known():
    _, deltas, _, _ = feed("abXYZ", stop=("XYZ",))
    assert deltas == ["a", "b", "", "", ""]


def test_a_false_start_comes_out_later():
    text, deltas, _, stopped = feed("abXYq", stop=("XYZ",))
    assert (text, stopped) == ("abXYq", False)
    assert "".join(deltas) == "abXYq"


def test_the_earliest_stop_wins_and_may_be_kept():
    assert feed("one two three", stop=("three", "two"))[0] == "one "
    assert feed("one two three", stop=("two",), include_stop_str_in_output=True)[0] == "one two"


def test_no_stop_before_min_tokens():
    assert feed("STOP then STOP", stop=("STOP",), min_tokens=6)[0] == "STOP then "
