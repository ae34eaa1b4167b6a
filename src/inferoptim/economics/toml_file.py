"""Reading TOML on every Python that the package supports."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from inferoptim.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """The tables of `text`.

    Raises:
        ConfigError: not TOML; `where` and the parser's line come in the message.
    """
    try:
        return dict(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not a TOML file ({error})") from error


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of the file at `path`.

    Raises:
        ConfigError: it cannot be read, or is not TOML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot read it ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8") from error
    return parse_toml(text, str(path))
