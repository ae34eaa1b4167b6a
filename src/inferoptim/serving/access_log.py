"""One JSON line a request, as `inferoptim audit` reads it: times, token counts and outcome, never a prompt or an answer."""

from __future__ import annotations

import json
import logging
import os
import time
from datetime import datetime, timezone
from pathlib import Path

from inferoptim.errors import ConfigError
from inferoptim.serving.generation import DeadlineError, Generation

_log = logging.getLogger(__name__)
CLIENT_LEFT = 499  # as nginx writes it


class AccessLog:
    """Appends to a file; every line is written whole. A disk that fills up ends the log, not the server.

    Args:
        path: created if need be, else appended to.

    Raises:
        ConfigError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        except OSError as error:
            raise ConfigError(f"--access-log {path}: cannot be written ({error.strerror})") from error

    def record(self, generation: Generation, operation: str, model: str, tenant: str) -> None:
        """A request has ended, in whatever way."""
        if self._fd < 0:
            return
        e2e_s = time.perf_counter() - generation.arrival_s
        first_s = min((c.first_token_s for c in generation.choices if c.first_token_s), default=None)
        usage = generation.usage
        line = {
            "time": datetime.fromtimestamp(time.time() - e2e_s, timezone.utc).isoformat(
                timespec="milliseconds"
            ),
            "id": generation.id,
            "operation": operation,
            "model": model,
            "tenant": tenant,
            "status": _status(generation),
            "finish_reason": next((c.finish_reason for c in generation.choices if c.finish_reason), None),
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens,
            "ttft_s": None if first_s is None else round(first_s - generation.arrival_s, 6),
            "e2e_s": round(e2e_s, 6),
        }
        try:
            os.write(self._fd, (json.dumps(line, ensure_ascii=False) + "\n").encode())
        except OSError as error:
            _log.error("access log %s: %s; no further line is written", self._path, error.strerror)
            self.close()

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _status(generation: Generation) -> int:
    if generation.error is None:
        return 200 if generation.finished else CLIENT_LEFT
    return 504 if isinstance(generation.error, DeadlineError) else 503
