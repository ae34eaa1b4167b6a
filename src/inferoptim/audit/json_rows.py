"""Requests inside JSON values: dotted paths, chat messages, whole conversations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from inferoptim.audit.options import ReadOptions
from inferoptim.audit.rows import MAX_LENGTH, UNKNOWN, Ints, Turn
from inferoptim.audit.times import TimeParser

MAX_DEPTH = 5
Path = tuple[str | int, ...]
_ASSISTANT = frozenset({"assistant", "gpt", "chatgpt", "bing", "bard", "model"})
_USER = frozenset({"user", "human"})
_PROMPT_KEYS = ("prompt", "text_input", "text", "input", "query", "question")
_OUTPUT_KEYS = ("completion", "response", "output", "answer")


@dataclass(slots=True)
class JsonRow:
    """One request as read."""

    prompt: int = UNKNOWN
    output: int = UNKNOWN
    arrival: float = math.nan
    duration: float = math.nan
    ttft: float = math.nan
    failed: bool = False
    truncated: bool = False
    session: int = 0
    turn: int = 0
    blocks: Ints | None = None
    text: Turn | None = None


def paths_of(value: Any, prefix: Path = ()) -> Iterator[Path]:
    """Paths of the scalars in `value`; of a list only the first element is looked at."""
    if len(prefix) >= MAX_DEPTH:
        return
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in ("messages", "conversations", "hash_ids", "input_ids"):
                yield from paths_of(inner, (*prefix, key))
    elif isinstance(value, list):
        if value:
            yield from paths_of(value[0], (*prefix, 0))
    elif prefix:
        yield prefix


def value_at(value: Any, path: Sequence[str | int]) -> Any:
    """What stands at `path`, or None."""
    for key in path:
        if isinstance(value, dict):
            value = value.get(key) if isinstance(key, str) else None
        elif isinstance(value, list) and isinstance(key, int) and len(value) > key:
            value = value[key]
        else:
            return None
    return value


def whole_of(value: Any, name: str) -> int:
    """A length.

    Raises:
        ValueError: why it is none.
    """
    if value is None or value == "":
        raise ValueError(f"{name}: missing")
    number = number_of(value)
    if math.isnan(number) or number != math.floor(number):
        raise ValueError(f"{name}: not a whole number")
    if number < 0:
        raise ValueError(f"{name}: negative")
    if number > MAX_LENGTH:
        raise ValueError(f"{name}: more than {MAX_LENGTH:,} tokens")
    return int(number)


def number_of(value: Any) -> float:
    """A number, or nan."""
    if value is None or isinstance(value, bool):
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def text_of(value: dict[str, Any], named: str | None = None) -> Turn | None:
    """The text of a logged request: its messages, or its prompt; None where there is none."""
    layers = [value]
    for key in ("request", "body", "response"):
        for layer in list(layers):
            inner = layer.get(key)
            if isinstance(inner, dict):
                layers.append(inner)
    output = next((t for t in map(_answer, layers) if t is not None), "")
    for layer in layers:
        messages = layer.get("messages")
        if isinstance(messages, list) and messages and all(isinstance(m, dict) for m in messages):
            return _of_messages(messages, output)
    for key in (named,) if named else _PROMPT_KEYS:
        for layer in layers:
            prompt = value_at(layer, key.split(".")) if key else None
            if isinstance(prompt, list) and prompt and all(isinstance(p, str) for p in prompt):
                prompt = prompt[0]
            if isinstance(prompt, str) and prompt:
                return Turn(prompt, output, last=prompt)
    return None


def _answer(layer: dict[str, Any]) -> str | None:
    for path in (("choices", 0, "message", "content"), ("choices", 0, "text")):
        found = value_at(layer, path)
        if isinstance(found, str):
            return found
    for key in _OUTPUT_KEYS:
        if isinstance(layer.get(key), str):
            return str(layer[key])
    return None


def _of_messages(messages: list[dict[str, Any]], output: str) -> Turn:
    parts = [_content(m) for m in messages]
    roles = [str(m.get("role", "")) for m in messages]
    if not output and roles and roles[-1] in _ASSISTANT and len(parts) > 1:
        output, parts, roles = parts[-1], parts[:-1], roles[:-1]  # the answer stands among the messages
    system = parts[0] if roles[0] in ("system", "developer") else ""
    middle = list(zip(roles, parts, strict=True))[1 if system else 0 : -1]
    examples = "\n".join(p for _, p in middle) if any(r in _ASSISTANT for r, _ in middle) else ""
    last = next((p for r, p in zip(roles[::-1], parts[::-1], strict=True) if r in _USER), parts[-1])
    return Turn("\n".join(parts), output, system, examples, last, sum(r in _USER for r in roles))


def _content(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(
            str(p["text"]) for p in content if isinstance(p, dict) and isinstance(p.get("text"), str)
        )
    return ""


def conversation_rows(value: dict[str, Any], options: ReadOptions, times: TimeParser) -> list[JsonRow] | None:
    """The requests of a whole conversation (ShareGPT, AIPerf multi-turn): one for each answer; None for another form.

    Raises:
        ValueError: why it holds none.
    """
    turns = value.get("conversations", value.get("conversation"))
    session = options.hash(str(value.get("id", value.get("session_id", id(value)))))
    if isinstance(turns, list):
        return _share_gpt(turns, session)
    turns = value.get("turns")
    if not isinstance(turns, list):
        return None
    rows, history, clock = [], "", math.nan
    for number, turn in enumerate(turns, 1):
        text = turn.get("text") if isinstance(turn, dict) else turn
        if not isinstance(text, str):
            raise ValueError(f"turn {number}: no text")
        history = f"{history}\n{text}" if history else text
        if isinstance(turn, dict) and turn.get("timestamp") is not None:
            clock = times.one(turn["timestamp"])
        rows.append(JsonRow(arrival=clock, session=session, turn=number, text=Turn(history, "", last=text)))
    if not rows:
        raise ValueError("a conversation without turns")
    return rows


def _share_gpt(turns: list[Any], session: int) -> list[JsonRow]:
    rows: list[JsonRow] = []
    before: list[str] = []
    system = question = ""
    asked = 0
    for turn in turns:
        if not isinstance(turn, dict):
            raise ValueError("conversations: each turn must be an object")
        role = str(turn.get("from", turn.get("role", ""))).lower()
        said = turn.get("value", turn.get("content"))
        if not isinstance(said, str):
            raise ValueError("conversations: a turn without text")
        if role == "system" and not before:
            system = said
        if role in _ASSISTANT and before:
            prompt = "\n".join(before)
            rows.append(
                JsonRow(
                    session=session, turn=asked, text=Turn(prompt, said, system, last=question, turn=asked)
                )
            )
        elif role in _USER:
            asked, question = asked + 1, said
        before.append(said)
    if not rows:
        raise ValueError("a conversation without an answer")
    return rows
