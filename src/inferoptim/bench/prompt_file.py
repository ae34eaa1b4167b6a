"""Prompts of one's own: a text file, one prompt a line, or JSON lines. A bad line is refused with its number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from inferoptim.bench.traffic import TokenizerLike, WorkloadRequest
from inferoptim.errors import ConfigError, InferOptimError

PROMPT_FIELDS = ("prompt", "messages", "prompt_token_ids")
FIELDS = frozenset({*PROMPT_FIELDS, "max_tokens", "arrival_s", "tag"})


def read_prompts(path: Path, tokenizer: TokenizerLike, output_tokens: int) -> list[WorkloadRequest]:
    """Read a file of prompts; blank lines are skipped.

    `.jsonl`: an object a line, with exactly one of `prompt` (text, sent as it is), `messages` (goes through the chat
    template) and `prompt_token_ids`; and optionally `max_tokens`, `arrival_s` and `tag`. Any other name: plain text,
    one prompt a line.

    Args:
        output_tokens: new tokens where a line does not say.

    Raises:
        ConfigError: unreadable file, no prompt in it, or a bad line (line and field named).
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        bad = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path} line {bad}: not UTF-8 text") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    read = _json_line if path.suffix == ".jsonl" else _text_line
    requests = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            request = read(line.rstrip("\r"), tokenizer, output_tokens, where)
        except ConfigError:
            raise
        except InferOptimError as error:  # the tokenizer or the chat template refuses it
            raise ConfigError(f"{where}: {error}") from error
        requests.append(request)
    if not requests:
        raise ConfigError(f"{path}: no prompt in it; write one a line")
    timed = [r.arrival_s is not None for r in requests]
    if any(timed) and not all(timed):
        raise ConfigError(f"{requests[timed.index(False)].source}: no arrival_s, though other lines have one")
    return requests


def _text_line(line: str, tokenizer: TokenizerLike, output_tokens: int, where: str) -> WorkloadRequest:
    return WorkloadRequest(tuple(tokenizer.encode(line)), output_tokens, tag="prompts", source=where)


def _json_line(line: str, tokenizer: TokenizerLike, output_tokens: int, where: str) -> WorkloadRequest:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise ConfigError(f'{where}: a JSON object is expected, like {{"prompt": "…"}}')
    unknown = fields.keys() - FIELDS
    if unknown:
        raise ConfigError(f"{where}: no such field {min(unknown)!r}; known: {', '.join(sorted(FIELDS))}")
    given = [name for name in PROMPT_FIELDS if name in fields]
    if len(given) != 1:
        raise ConfigError(
            f"{where}: exactly one of {', '.join(PROMPT_FIELDS)} is expected, found {', '.join(given) or 'none'}"
        )
    max_tokens = fields.get("max_tokens", output_tokens)
    if type(max_tokens) is not int or max_tokens < 1:
        raise ConfigError(f"{where}: max_tokens must be a whole number of at least 1, not {max_tokens!r}")
    arrival = fields.get("arrival_s")
    if arrival is not None and (type(arrival) not in (int, float) or not 0 <= arrival < float("inf")):
        raise ConfigError(f"{where}: arrival_s must be seconds since the start, not {arrival!r}")
    tag = fields.get("tag", "prompts")
    if not isinstance(tag, str):
        raise ConfigError(f"{where}: tag must be a string, not {tag!r}")
    ids = _prompt_ids(given[0], fields[given[0]], tokenizer, where)
    return WorkloadRequest(ids, max_tokens, None if arrival is None else float(arrival), tag, where)


def _prompt_ids(name: str, value: Any, tokenizer: TokenizerLike, where: str) -> tuple[int, ...]:
    if name == "prompt":
        if not isinstance(value, str) or not value:
            raise ConfigError(f"{where}: prompt must be a text that is not empty, not {value!r}")
        return tuple(tokenizer.encode(value))
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{where}: {name} must be a list that is not empty, not {value!r}")
    if name == "prompt_token_ids":
        wrong = next((t for t in value if type(t) is not int or not 0 <= t < tokenizer.vocab_size), None)
        if wrong is not None:
            raise ConfigError(
                f"{where}: prompt_token_ids: {wrong!r} is no id of this model (0…{tokenizer.vocab_size - 1})"
            )
        return tuple(value)
    for message in value:
        if (
            not isinstance(message, dict)
            or not isinstance(message.get("role"), str)
            or "content" not in message
        ):
            raise ConfigError(f"{where}: messages: each needs role and content, not {message!r}")
    if not tokenizer.has_chat_template:
        raise ConfigError(f"{where}: messages, but this model has no chat template; use prompt")
    return tuple(tokenizer.encode(tokenizer.apply_chat_template(value), add_special_tokens=False))
