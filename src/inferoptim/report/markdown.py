"""Make any text inert in Markdown: a model name must not become a link, an image, a heading or a table cell."""

from __future__ import annotations

import re

_ACTIVE = re.compile(r"([\\`*\[\]<>|~#!])")
_UNDERSCORE = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def escape_markdown(text: object) -> str:
    """One line of Markdown that reads as `text`."""
    line = " ".join(str(text).split())
    line = line.replace("&", "&amp;")
    line = _ACTIVE.sub(r"\\\1", line)
    return _UNDERSCORE.sub(r"\\_", line)


def code_block(text: object) -> str:
    """A fenced block whose fence is longer than any run of backticks inside."""
    body = str(text).replace("\r", "")
    longest = max((len(run) for run in re.findall(r"`+", body)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{body}\n{fence}"
