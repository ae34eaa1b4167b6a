"""Requests on disk as they end: a run that is killed leaves `requests.partial.jsonl`, one that ends leaves `requests.jsonl`."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

from pydantic import TypeAdapter

from inferoptim.errors import InferOptimError
from inferoptim.records.load_schema import LoadRequestRecord
from inferoptim.records.writer import explain_os_error

PERIOD_S = 0.5  # a kill loses what ended in it
_JSON = TypeAdapter(LoadRequestRecord)


def encoded(record: LoadRequestRecord) -> bytes:
    """A line of requests.jsonl."""
    return _JSON.dump_json(record) + b"\n"


class RowFile:
    """Takes rows on the event loop's thread and writes them from a thread of its own, so that a slow disk delays no request.

    Encoding a row takes microseconds and is done at once: in the thread it would hold the interpreter for milliseconds at a
    time, which is the client's own lag.

    Args:
        path: of the finished file; until then the rows are in `partial`, which is made with the first of them.
        on_failure: called once, from the thread, when a row cannot be written; `finish` then raises.
    """

    def __init__(self, path: Path, on_failure: Callable[[], object] = lambda: None) -> None:
        self.path = path
        self.partial = path.with_name(f"{path.stem}.partial{path.suffix}")
        self._on_failure = on_failure
        self._waiting: deque[bytes] = deque()  # appended by one thread, emptied by the other
        self._failure: OSError | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="rows", daemon=True)

    def add(self, record: LoadRequestRecord) -> None:
        """Keep a row; it is on disk within `PERIOD_S`."""
        self._waiting.append(encoded(record))

    def __enter__(self) -> RowFile:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Write what waits; the file stays partial unless `finish` was called."""
        self._over.set()
        self._thread.join()

    def finish(self) -> None:
        """Write what waits and give the file its name.

        Raises:
            InferOptimError: a row could not be written; what could be is in `partial`.
        """
        self._over.set()
        self._thread.join()
        try:
            if self._failure is not None:
                raise self._failure
            if self.partial.exists():
                with self.partial.open("ab") as file:
                    os.fsync(file.fileno())
                os.replace(self.partial, self.path)
        except OSError as error:
            raise self._explained(error) from error

    def _explained(self, error: OSError) -> InferOptimError:
        found = explain_os_error(error, self.partial)
        kept = " (what had been written is in it)" if self.partial.exists() else ""
        return type(found)(f"{found}{kept}")

    def _loop(self) -> None:
        over = False
        while not over:
            over = self._over.wait(PERIOD_S)
            rows = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if not rows or self._failure is not None:
                continue
            try:
                self._write(b"".join(rows))
            except OSError as error:
                self._failure = error
                self._on_failure()

    def _write(self, data: bytes) -> None:
        with self.partial.open("ab", buffering=0) as file:
            before = file.tell()
            written = 0
            try:
                while written < len(data):
                    written += file.write(data[written:])
            except OSError:
                with contextlib.suppress(OSError):  # no half line: a reader takes the file as it is
                    file.truncate(before + data.rfind(b"\n", 0, written) + 1)
                raise
