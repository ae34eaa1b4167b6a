"""Chat templates: Jinja programs that come with a model, run in a sandbox with transformers' conventions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from inferoptim.errors import DataError, RequestError


class ChatTemplate:
    """One compiled template.

    Raises:
        DataError: the template itself is not valid Jinja.
    """

    def __init__(self, source: str, where: str) -> None:
        self._where = where
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise DataError(f"{where}: line {error.lineno}: {error.message}") from error

    def render(self, variables: Mapping[str, Any]) -> str:
        """Run the template.

        Raises:
            RequestError: the template refuses these variables, or cannot read them.
        """
        try:
            return self._template.render(**variables)
        except (
            jinja2.TemplateError,
            TypeError,
            KeyError,
            ValueError,
            AttributeError,
            OverflowError,
        ) as error:
            raise RequestError(
                f"the chat template refuses these messages: {error} ({self._where})"
            ) from error


class _Generation(Extension):
    """``{% generation %}…{% endgeneration %}`` marks the assistant's text for training; here it is just its content."""

    tags = {"generation"}  # noqa: RUF012 - the name and form that jinja2 reads

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node | list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return environment


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON; jinja's own filter escapes HTML characters, which no model was trained on."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
