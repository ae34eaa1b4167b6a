"""A server that answers at once: what the load client can reach when nothing stands behind the socket.

It speaks just enough of the API to be driven by the same client over the same kind of connection: /v1/models, and
streamed completions of exactly `max_tokens` tokens, whose events were all encoded before the first request. Its
figures are the client's ceiling, never a server's.

    python -m inferoptim.bench.load.null_server --port 0
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from functools import lru_cache

import httptools

MODEL = "null"
_MAX_TOKENS = re.compile(rb'"max_tokens":\s*(\d+)')
_CHUNK = b'data: {"id":"null","object":"text_completion","choices":[{"index":0,"text":" token","finish_reason":%s}]}\n\n'
_USAGE = b'data: {"id":"null","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":%d,"total_tokens":%d}}\n\n'


@lru_cache(maxsize=4096)
def answer(tokens: int) -> bytes:
    """The whole streamed answer of `tokens` tokens, as HTTP chunks."""
    events = [_CHUNK % (b"null" if i < tokens - 1 else b'"length"') for i in range(tokens)]
    events += [_USAGE % (tokens, tokens + 1), b"data: [DONE]\n\n"]
    body = b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events) + b"0\r\n\r\n"
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n" + body


class NullProtocol(asyncio.Protocol):
    """One connection; requests are answered in order as they are parsed."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._url, self._body = b"", bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            if self._transport is not None:
                self._transport.close()

    def on_url(self, url: bytes) -> None:
        self._url, self._body = url, bytearray()

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        assert self._transport is not None
        if self._url.endswith(b"completions"):
            found = _MAX_TOKENS.search(self._body)
            self._transport.write(answer(int(found[1]) if found else 16))
            return
        known = self._url == b"/v1/models"
        body = (
            b'{"object":"list","data":[{"id":"null","object":"model"}]}'
            if known
            else b'{"detail":"Not Found"}'
        )
        status = b"200 OK" if known else b"404 Not Found"
        self._transport.write(
            b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (status, len(body), body)
        )


async def serve(port: int) -> None:
    """Listen on loopback, print the port, answer until stdin closes (the parent is gone) or Ctrl-C."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(NullProtocol, "127.0.0.1", port, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await loop.run_in_executor(None, sys.stdin.buffer.read)


def main() -> None:
    """Entry point of the subprocess."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    port = parser.parse_args().port
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve(port))
    else:
        uvloop.run(serve(port))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(0)
