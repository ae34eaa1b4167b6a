"""A small HTTP/1.1 client made for measuring: keep-alive connections on asyncio, parsed by httptools.

Why not a general client: httpx spends about 0.7 ms of CPU on a request, which would make the client the bottleneck of
a load test on a small machine (measured; see docs/LOG.md). Here one request costs one write, one parse and one future.
Every received block of bytes is stamped with ``time.perf_counter()`` as it leaves the socket.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

import httptools

from inferoptim.errors import ConfigError

CONNECT_TIMEOUT_S = 10.0
MAX_HEADER_BYTES = 64 * 1024


class TransportError(Exception):
    """The exchange failed below HTTP. `kind` is one of the error taxonomy's names (see `KINDS`)."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind, self.detail = kind, detail


# What can go wrong below HTTP, and what each means to the person who reads the table.
KINDS = {
    "dns": "the host name cannot be resolved",
    "refused": "nobody listens there",
    "connect": "no connection could be made",
    "tls": "the TLS handshake failed",
    "reset": "the connection was closed before the answer was complete",
    "timeout": "no complete answer within the time limit",
    "protocol": "the bytes received are not HTTP/1.1",
    "client_files": "this client ran out of file descriptors (ulimit -n)",
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to connect and what stands in front of every path."""

    scheme: str
    host: str
    port: int
    base_path: str  # '' or '/prefix', without a trailing slash
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # may hold a key

    @property
    def url(self) -> str:
        """As a person would write it; never with a key."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == {"http": 80, "https": 443}[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.base_path}"

    @classmethod
    def parse(cls, url: str, headers: Mapping[str, str] | None = None) -> Endpoint:
        """From ``http://host:port[/prefix][/v1]``.

        Raises:
            ConfigError: not an http(s) address, or one that carries a user, query or fragment.
        """
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"{url}: not an address ({error})") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{url}: give an address such as http://127.0.0.1:8000")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ConfigError(f"{url}: a user, query or fragment has no place in the address")
        for name, value in (headers or {}).items():
            if any(c in "\r\n\0" for c in name + value):
                raise ConfigError(f"header {name}: line breaks are not allowed")
        base = parts.path.rstrip("/").removesuffix("/v1")
        return cls(
            parts.scheme,
            parts.hostname,
            port or (443 if parts.scheme == "https" else 80),
            base,
            dict(headers or {}),
        )

    def head(self, method: str, path: str) -> bytes:
        """Request line and constant headers; the body's length and a blank line must follow."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [f"{method} {self.base_path}{path} HTTP/1.1", f"Host: {host}:{self.port}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return ("\r\n".join(lines) + "\r\n").encode("latin-1")

    def message(self, method: str, path: str, body: bytes = b"", accept: str = "application/json") -> bytes:
        """A whole request as bytes, so that a load test can build all of them before it starts."""
        fields = f"Accept: {accept}\r\n"
        if body or method == "POST":
            fields += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        return self.head(method, path) + fields.encode("ascii") + b"\r\n" + body


class Sink(Protocol):
    """Receives one response as it arrives. Called inside the event loop: must not block, must not raise."""

    def on_head(self, status: int, headers: Mapping[bytes, bytes]) -> None: ...

    def on_body(self, data: bytes, now_s: float) -> None: ...


class Connection(asyncio.Protocol):
    """One keep-alive connection; one exchange at a time. The parser's callbacks are its methods."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.exchanges = 0
        self._done: asyncio.Future[None] | None = None
        self._sink: Sink | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._headers: dict[bytes, bytes] = {}
        self._header_bytes = 0
        self._now_s = 0.0
        self.received_any = False
        self._keep = False
        self._until_eof = False

    @property
    def usable(self) -> bool:
        """True while another request may be sent on it."""
        return self.transport is not None and not self.transport.is_closing() and self._done is None

    def exchange(self, message: bytes, sink: Sink) -> asyncio.Future[None]:
        """Send one request; the future ends with the response's last byte, or with a `TransportError`."""
        assert self.transport is not None
        assert self._done is None
        self._sink, self.received_any = sink, False
        self._until_eof = False
        self._parser = httptools.HttpResponseParser(self)
        self._headers, self._header_bytes = {}, 0
        done = self._done = asyncio.get_running_loop().create_future()
        self.exchanges += 1
        self.transport.write(message)
        return done

    def abort(self) -> None:
        """Drop the connection at once: what a client that goes away does."""
        self._done = None
        if self.transport is not None:
            self.transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._now_s = time.perf_counter()
        self.received_any = True
        if self._parser is None or self._done is None:
            self.abort()  # bytes that nobody asked for: never let them become the next answer
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(TransportError("protocol", str(error)))

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self._done is None:
            return
        if self._until_eof and exc is None:
            self._finish()
        else:
            self._fail(TransportError("reset", str(exc or "")))

    # httptools callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > MAX_HEADER_BYTES:
            raise ValueError("response headers above 64 KiB")
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        if status >= 200:
            self._keep = self._parser.should_keep_alive()
            framed = b"content-length" in self._headers or b"transfer-encoding" in self._headers
            self._until_eof = not framed and status not in (204, 304)
            if self._sink is not None:
                self._sink.on_head(status, self._headers)

    def on_body(self, data: bytes) -> None:
        if self._sink is not None:
            self._sink.on_body(data, self._now_s)

    def on_message_complete(self) -> None:
        assert self._parser is not None
        if self._parser.get_status_code() >= 200:  # 1xx: the answer proper follows
            self._finish()

    def _finish(self) -> None:
        done, self._done, self._sink = self._done, None, None
        if not self._keep and self.transport is not None:
            self.transport.close()
        if done is not None and not done.done():
            done.set_result(None)

    def _fail(self, error: TransportError) -> None:
        done, self._done, self._sink = self._done, None, None
        if self.transport is not None:
            self.transport.abort()
        if done is not None and not done.done():
            done.set_exception(error)


class HttpClient:
    """A pool of connections to one endpoint. Made and used inside one running event loop."""

    def __init__(self, endpoint: Endpoint, timeout_s: float = 600.0) -> None:
        self.endpoint = endpoint
        self.timeout_s = timeout_s
        self.connections_opened = 0
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._tls = ssl.create_default_context() if endpoint.scheme == "https" else None

    async def exchange(self, message: bytes, sink: Sink) -> float:
        """Send `message` and wait for the whole answer.

        Returns:
            When the request's bytes were handed to the socket (``time.perf_counter()``).

        Raises:
            TransportError: no connection, a broken one, or no complete answer in time.
        """
        connection = self._take_idle()
        reused = connection is not None
        if connection is None:
            connection = await self._connect()
        while True:
            loop = asyncio.get_running_loop()
            sent_s = time.perf_counter()
            done = connection.exchange(message, sink)
            timer = loop.call_later(self.timeout_s, _time_out, connection)
            try:
                await done
            except TransportError as error:
                self._open.discard(connection)
                # a server may close an idle connection just as it is used again: that says nothing about the request
                if not (reused and error.kind == "reset" and not connection.received_any):
                    raise
                connection, reused = await self._connect(), False
                continue
            except asyncio.CancelledError:
                connection.abort()
                self._open.discard(connection)
                raise
            finally:
                timer.cancel()
            if connection.usable:
                self._idle.append(connection)
            else:
                self._open.discard(connection)
            return sent_s

    async def warm(self, connections: int) -> None:
        """Open connections before the clock starts."""
        missing = connections - len(self._idle)
        if missing > 0:
            self._idle += await asyncio.gather(*(self._connect() for _ in range(missing)))

    def close(self) -> None:
        """Drop every connection."""
        for connection in self._open:
            connection.abort()
        self._open.clear()
        self._idle.clear()

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
            self._open.discard(connection)
        return None

    async def _connect(self) -> Connection:
        loop, end = asyncio.get_running_loop(), self.endpoint
        try:
            _, connection = await asyncio.wait_for(
                loop.create_connection(
                    Connection,
                    end.host,
                    end.port,
                    ssl=self._tls,
                    server_hostname=end.host if self._tls else None,
                ),
                CONNECT_TIMEOUT_S,
            )
        except asyncio.TimeoutError as error:
            raise TransportError("connect", f"no connection in {CONNECT_TIMEOUT_S:.0f} s") from error
        except ssl.SSLError as error:
            raise TransportError("tls", str(error)) from error
        except socket.gaierror as error:
            raise TransportError("dns", f"{end.host}: {error.strerror}") from error
        except ConnectionRefusedError as error:
            raise TransportError("refused", f"{end.host}:{end.port}") from error
        except OSError as error:
            kind = "client_files" if error.errno in (errno.EMFILE, errno.ENFILE) else "connect"
            raise TransportError(kind, str(error.strerror or error)) from error
        self.connections_opened += 1
        self._open.add(connection)
        return connection


def _time_out(connection: Connection) -> None:
    connection._fail(TransportError("timeout"))
