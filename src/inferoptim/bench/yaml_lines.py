"""YAML with the line of every field, so that an error in a plan says where to look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from inferoptim.errors import ConfigError

Location = tuple[str | int, ...]


def load_yaml(path: Path) -> tuple[dict[str, Any], dict[Location, int]]:
    """Read a YAML mapping.

    Returns:
        The values, and the line (from 1) of every field by its location, e.g. ``("workloads", 0, "name")``.

    Raises:
        ConfigError: unreadable file, broken YAML, a field given twice, or not a mapping (line given).
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"cannot read {path}: {reason}") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path} line {line}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or node is None:
        raise ConfigError(f"{path} line 1: a mapping of fields is expected, like `model: smollm2-135m`")
    lines: dict[Location, int] = {}
    _collect(node, (), lines, path)
    return values, lines


def line_of(location: Location, lines: dict[Location, int]) -> int | None:
    """The line of a field, or of the closest enclosing one that stands in the file."""
    for length in range(len(location), 0, -1):
        if location[:length] in lines:
            return lines[location[:length]]
    return None


def _collect(node: yaml.Node, location: Location, lines: dict[Location, int], path: Path) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*location, key.value)
            line = key.start_mark.line + 1
            if inner in lines:
                raise ConfigError(
                    f"{path} line {line}: {'.'.join(map(str, inner))} is given twice (first at line {lines[inner]})"
                )
            lines[inner] = line
            _collect(value, inner, lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            here = (*location, index)
            lines[here] = value.start_mark.line + 1
            _collect(value, here, lines, path)
