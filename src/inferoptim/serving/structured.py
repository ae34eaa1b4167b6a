"""Response formats and tool calls as grammars, built in the server so that a wrong schema is a 400 and nothing else."""

from __future__ import annotations

import json
from typing import Any

from inferoptim.serving.problems import HttpError
from inferoptim.serving.schemas import NamedToolChoice, ResponseFormat, Tool

TOOL_BEGIN = "<tool_call>"
TOOL_END = "</tool_call>"
_MAX_SCHEMA_CHARS = 100_000
# Whitespace between JSON tokens is allowed but bounded: a small model can otherwise repeat it until max_tokens.
_JSON_OPTIONS: dict[str, Any] = {"whitespace_pattern": r"[\x20\x0A]{1,8}"}


def response_grammar(response_format: ResponseFormat | None) -> str | None:
    """The grammar of a response format; None for free text.

    Raises:
        HttpError: 400, the schema cannot be followed.
    """
    if response_format is None or response_format.type == "text":
        return None
    if response_format.type == "json_object":
        return _json_grammar({"type": "object"}, "response_format")
    schema = response_format.json_schema.schema_
    return _json_grammar(
        {"type": "object"} if schema is None else schema, "response_format.json_schema.schema"
    )


def tool_grammar(tools: list[Tool], choice: str | NamedToolChoice | None, parallel: bool) -> str | None:
    """The grammar of an answer that may or must call tools; None when none may be called.

    Args:
        tools: functions with the schemas of their arguments.
        choice: as in the request; None is auto.
        parallel: more than one call is allowed.

    Raises:
        HttpError: 400, the parameters of a function cannot be followed.
    """
    if choice == "none":
        return None
    named = choice.function.name if isinstance(choice, NamedToolChoice) else None
    calls = []
    for index, tool in enumerate(tools):
        function = tool.function
        if named is not None and function.name != named:
            continue
        parameters = function.parameters or {"type": "object"}
        _json_grammar(parameters, f"tools[{index}].function.parameters")
        calls.append(call_schema(function.name, parameters))
    bodies = "\n".join(
        f"body_{i}: %json {json.dumps({**c, 'x-guidance': _JSON_OPTIONS})}" for i, c in enumerate(calls)
    )
    one_of = " | ".join(f"body_{i}" for i in range(len(calls)))
    begin, end = json.dumps(TOOL_BEGIN), json.dumps(TOOL_END)
    call = f'"\\n"? ({one_of}) "\\n"? {end}'
    if choice == "required" or named is not None:
        repeat = '("\\n" call)*' if parallel and named is None else ""
        lark = f"start: call {repeat}\ncall: {begin} {call}\n{bodies}\n"
    else:
        repeat = "call* TEXT" if parallel else "call | TEXT"
        lark = f"start: {repeat}\nopening[lazy]: TEXT {begin}\ncall: opening {call}\nTEXT: /(.|\\n)*/\n{bodies}\n"
    return _checked(lark, "tools")


def call_schema(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """JSON schema of one call, with references inside `parameters` moved to where they still resolve."""
    parameters = dict(parameters)
    moved: dict[str, Any] = {
        key: parameters.pop(key) for key in ("$defs", "definitions") if key in parameters
    }
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "arguments": parameters},
        "required": ["name", "arguments"],
        "additionalProperties": False,
        **moved,
    }


def _json_grammar(schema: dict[str, Any], param: str) -> str:
    from llguidance import LLMatcher

    if len(json.dumps(schema)) > _MAX_SCHEMA_CHARS:
        raise HttpError(
            400, f"{param}: a schema of more than {_MAX_SCHEMA_CHARS} characters", param, "invalid_schema"
        )
    try:
        grammar: str = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_JSON_OPTIONS)
    except ValueError as error:
        raise HttpError(400, f"{param}: {error}", param, "invalid_schema") from error
    return _checked(grammar, param)


def _checked(grammar: str, param: str) -> str:
    from llguidance import LLMatcher

    problem = LLMatcher.validate_grammar(grammar)
    if problem:
        line = problem.strip().split("\n", 1)[0]
        raise HttpError(400, f"{param}: this schema cannot be followed: {line}", param, "invalid_schema")
    return grammar
