"""Tasks with a right answer, from JSON lines: a prompt with choices (the likeliest continuation is taken) or a pattern.

A line is an object with `prompt` and either `choices` (texts that continue the prompt) and `answer` (index of the right one),
or `regex` (the greedy answer must match it somewhere).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from inferoptim.errors import ConfigError

_FIELDS = {"prompt", "choices", "answer", "regex", "language"}


@dataclass(frozen=True, slots=True)
class Task:
    """One question. Exactly one of `choices` and `regex` is set."""

    prompt: str
    choices: tuple[str, ...] = ()
    answer: int = 0
    regex: str | None = None
    language: str = ""


def read_tasks(path: Path | None) -> list[Task]:
    """Read a file of tasks; None = the shipped English and French set.

    Raises:
        ConfigError: unreadable, empty, or a bad line (named).
    """
    try:
        if path is None:
            text = (files("inferoptim.build") / "tasks_en_fr.jsonl").read_text(encoding="utf-8")
        else:
            text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the tasks in {path}: {error}") from error
    where = "the shipped tasks" if path is None else str(path)
    tasks = [_task(line, f"{where} line {n}") for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not tasks:
        raise ConfigError(f"{where}: no task in it")
    return tasks


def _task(line: str, where: str) -> Task:
    try:
        stated: dict[str, Any] = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON ({error})") from error
    if not isinstance(stated, dict) or not isinstance(stated.get("prompt"), str) or not stated["prompt"]:
        raise ConfigError(f"{where}: an object with a text 'prompt' is expected")
    if unknown := sorted(set(stated) - _FIELDS):
        raise ConfigError(f"{where}: unknown field {unknown[0]!r}; known: {', '.join(sorted(_FIELDS))}")
    language = str(stated.get("language", ""))
    if ("choices" in stated) == ("regex" in stated):
        raise ConfigError(f"{where}: give either 'choices' and 'answer', or 'regex'")
    if "regex" in stated:
        try:
            re.compile(stated["regex"])
        except (re.error, TypeError) as error:
            raise ConfigError(f"{where}: 'regex' is not a pattern ({error})") from error
        return Task(stated["prompt"], regex=stated["regex"], language=language)
    choices, answer = stated["choices"], stated.get("answer")
    if (
        not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(c, str) and c for c in choices)
    ):
        raise ConfigError(f"{where}: 'choices' must be two texts or more")
    if not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise ConfigError(f"{where}: 'answer' must be the index of a choice, 0 to {len(choices) - 1}")
    return Task(stated["prompt"], tuple(choices), answer, language=language)


def matches(task: Task, answer: str) -> bool:
    """Whether a generated answer is right."""
    assert task.regex is not None
    return re.search(task.regex, answer) is not None


def likeliest(log_probabilities: Sequence[float], lengths: Sequence[int]) -> int:
    """Index of the choice with the highest log-probability per token (so that length is no handicap)."""
    return max(range(len(lengths)), key=lambda i: log_probabilities[i] / lengths[i])
