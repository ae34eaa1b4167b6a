"""Errors as the OpenAI API words them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from pydantic import ValidationError
from starlette.responses import Response

from inferoptim.errors import CapacityError, ConfigError, EngineDeadError, RequestError, UnsupportedError
from inferoptim.serving.admission import QueueFullError
from inferoptim.serving.generation import DeadlineError

log = logging.getLogger("inferoptim.serving")


class HttpError(Exception):
    """An answer that is not a success.

    Args:
        status: HTTP status.
        message: one line a person reads.
        param: the field that is wrong, if one is.
        code: a word for programs.
        headers: more headers, such as Retry-After.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The error object."""
        return {
            "error": {
                "message": self.message,
                "type": _type(self.status),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> Response:
        """The whole answer."""
        return Response(
            msgspec.json.encode(self.body()), self.status, self.headers, media_type="application/json"
        )


def _type(status: int) -> str:
    if status in (401, 403):
        return "authentication_error"
    if status == 404:
        return "not_found_error"
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


def of_exception(error: Exception) -> HttpError:
    """The answer to any error that a request met."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, QueueFullError):
        return HttpError(
            429, str(error), code="queue_full", headers={"Retry-After": str(error.retry_after_s)}
        )
    if isinstance(error, DeadlineError):
        return HttpError(504, str(error), code="deadline_exceeded")
    if isinstance(error, RequestError | ConfigError | UnsupportedError | CapacityError):
        return HttpError(400, str(error), code="invalid_value")
    if isinstance(error, EngineDeadError):
        return HttpError(503, str(error), code="engine_dead", headers={"Retry-After": "5"})
    log.exception("unexpected error", exc_info=error)
    return HttpError(500, f"unexpected {type(error).__name__} (a bug; the server's log has the details)")


def of_validation(error: ValidationError, body: bytes) -> HttpError:
    """A 400 that names the first wrong field (the message lists up to five)."""
    problems = error.errors(include_url=False, include_input=False)
    if problems[0]["type"] == "json_invalid":
        return HttpError(
            400, f"the body is not valid JSON: {problems[0]['ctx']['error']}", code="invalid_json"
        )
    value = json.loads(body, parse_int=str)  # only the shape matters; a huge number must not be converted
    lines: list[str] = []
    param: str | None = None
    for problem in problems:
        path, text = _field(problem, value)
        if param is None:
            param = path or None
        line = f"{path}: {text}" if path else text
        if line not in lines:
            lines.append(line)
    return HttpError(400, "; ".join(lines[:5]), param, "invalid_value")


def _field(problem: Any, value: Any) -> tuple[str, str]:
    """The path of a wrong field in the body, and what is wrong with it."""
    kind, text = problem["type"], problem["msg"].removeprefix("Value error, ")
    path = _path(problem["loc"], value, missing=kind == "missing")
    if kind == "extra_forbidden":
        text = "unknown field"
    if kind in ("unsupported_field", "value_error"):  # validators of several fields name theirs in the text
        word, colon, rest = text.partition(": ")
        if colon and word.isidentifier():
            return f"{path}.{word}".lstrip("."), rest
    return path, text


def _path(location: Sequence[int | str], value: Any, missing: bool) -> str:
    """A location in the words of the client: without the parts that name a member of a union.

    Such a part is told from a field by the body itself, which has no such field.
    """
    path = ""
    for index, part in enumerate(location):
        if isinstance(part, int):
            path += f"[{part}]"
            value = value[part] if isinstance(value, list) and part < len(value) else None
        elif isinstance(value, dict) and part in value:
            path += f".{part}"
            value = value[part]
        elif missing and index == len(location) - 1:
            path += f".{part}"
    return path.lstrip(".")
