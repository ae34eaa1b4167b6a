"""What the README and the pages of docs/ say can be typed: commands, options, make targets; links lead somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from inferoptim.cli.lazy import LazyCommand
from inferoptim.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`([^`\n]+)`")
_SHELL_ENDS = re.compile(r"\s(?:\||>|>>|&&|;|&|2>&1)(?:\s|$)")


def lines_of_code(text: str) -> Iterator[str]:
    """Every line of a shell block (continued lines joined), and every inline piece of code."""
    for language, block in _FENCE.findall(text):
        if language in ("", "bash", "sh", "console", "shell"):
            yield from (line.strip() for line in block.replace("\\\n", " ").splitlines())
    yield from _INLINE.findall(_FENCE.sub("", text))


def commands(path: Path) -> Iterator[list[str]]:
    """Words after `inferoptim`, for each time that a page tells to type it."""
    for line in lines_of_code(path.read_text(encoding="utf-8")):
        line = line.removeprefix("$ ").partition("  #")[0].replace("…", "")
        match = re.match(
            r"(?:\w+=\S+ )*(?:\S*/)?(?:python3? -m )?inferoptim(?: (.+))?$",
            _SHELL_ENDS.split(line)[0].strip(),
        )
        if match and match[1]:
            yield shlex.split(match[1])


def loaded(command: Any) -> Any:
    return command.load() if isinstance(command, LazyCommand) else command


def complaint(words: list[str]) -> str | None:
    """Why these words cannot be typed; None if they can. Values are not checked."""
    command = typer.main.get_command(app)
    for index, word in enumerate(words):
        children = getattr(command, "commands", None)
        if word.startswith("-") or children is None:
            break
        if word not in children:
            return f"there is no command {' '.join(words[: index + 1])!r}"
        command = loaded(children[word])
    known = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    known |= {"--help", "-h", "--debug"}
    for word in words:
        option = word.strip("[]").partition("=")[0]
        if option.startswith("-") and not re.fullmatch(r"-[\d.]+|-|--", option) and option not in known:
            return f"`inferoptim {' '.join(words)}`: no option {option}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_can_be_typed(page: Path):
    wrong = [text for words in commands(page) if (text := complaint(words))]
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_make_targets_exist(page: Path):
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    typed = {
        line.split()[1]
        for line in lines_of_code(page.read_text(encoding="utf-8"))
        if re.match(r"make [a-z]", line)
    }
    assert missing == []
    assert typed <= targets


def test_the_check_itself_sees_what_is_wrong():
    assert complaint(["pull", "x", "--verify"]) is None
    assert complaint(["--version"]) is None
    assert "no option --verfy" in str(complaint(["pull", "x", "--verfy"]))
    assert "no command 'pul'" in str(complaint(["pul"]))
    assert len(list(commands(ROOT / "README.md"))) > 10


def test_readmes_in_both_languages_name_the_same_commands():
    english, french = (
        {words[0] for words in commands(ROOT / name)} for name in ("README.md", "README.fr.md")
    )
    assert english == french


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {name for name in pages if f"({name})" not in index} == set()
