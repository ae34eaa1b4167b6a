"""uvicorn's HTTP/1.1 protocol with two bounds that it lacks: the size of a request's head, and the time to send it all."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
RECEIVE_TIMEOUT_S = 60.0  # from the first byte (or the connection) to the end of the body


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection whose request is too long in coming or has too large a head."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        self._in_head = True
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A connection that sends nothing is closed, too."""
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more will come."""
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Refuse to collect an endless head."""
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self._ends_head(data):
                self.send_400_response("The request's head is too large.")
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        self._arm()

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body is there."""
        self._disarm()
        self._in_head, self._head_bytes = True, 0
        super().on_message_complete()

    def _ends_head(self, data: bytes) -> bool:
        """Whether a large piece is a head within bounds and the beginning of its body."""
        return 0 <= data.find(b"\r\n\r\n") <= MAX_HEAD_BYTES

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(RECEIVE_TIMEOUT_S, self._too_slow)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.close()
