"""Errors as the OpenAI API words them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
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


def of_validation(error: ValidationError) -> HttpError:
    """A 400 that names the first wrong field (the message lists up to five)."""
    problems = error.errors(include_url=False, include_input=False)
    if problems[0]["type"] == "json_invalid":
        return HttpError(
            400, f"the body is not valid JSON: {problems[0]['ctx']['error']}", code="invalid_json"
        )
    lines: list[str] = []
    param: str | None = None
    for problem in problems[:5]:
        name, text = _field(problem)
        if param is None:
            param = name or None
        line = text if not name or text.startswith(f"{name}:") else f"{name}: {text}"
        if line not in lines:
            lines.append(line)
    return HttpError(400, "; ".join(lines), param, "invalid_value")


def _field(problem: Any) -> tuple[str, str]:
    text = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        text = "unknown field"
    path = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"] if not _is_tag(part)
    ).lstrip(".")
    if problem["type"] in ("unsupported_field", "value_error"):
        word = text.partition(":")[0]
        if word.isidentifier():
            path = f"{path}.{word}".lstrip(".")
    return path, text


def _is_tag(part: Any) -> bool:
    """True for the parts of a location that name a member of a union rather than a field."""
    return isinstance(part, str) and (
        part
        in ("str", "bool", "int", "system", "developer", "user", "assistant", "tool", "text", "json_object")
        or part[:1].isupper()
        or "[" in part
        or part == "constrained-str"
    )
