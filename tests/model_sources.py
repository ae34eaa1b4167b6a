"""A real HTTP server that stands in for the model Hub and for a package index, and misbehaves when told to."""

from __future__ import annotations

import hashlib
import json
import re
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class ModelSource(ThreadingHTTPServer):
    """Serves `files` as the Hub repository `repo` at one commit, and `wheels` as a flat package page.

    Attributes:
        tampered: names of files whose bytes are changed on the way, sizes kept.
        cut_after: file name -> bytes sent before the connection breaks, once.
        slow: seconds between two pieces of every body, so that a reader can be interrupted.
        requests: (method, path, Range header) of everything asked.
        bytes_sent: of bodies sent slowly.
    """

    daemon_threads = True

    def __init__(
        self, repo: str = "", files: dict[str, bytes] | None = None, wheels: dict[str, bytes] | None = None
    ):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repo, self.files, self.wheels = repo, files or {}, wheels or {}
        self.tampered: set[str] = set()
        self.cut_after: dict[str, int] = {}
        self.slow = 0.0
        self.bytes_sent = 0
        self.requests: list[tuple[str, str, str | None]] = []
        self._thread = Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> ModelSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves in the middle is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ModelSource

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        source, path = self.server, unquote(urlparse(self.path).path)
        source.requests.append((self.command, path, self.headers.get("Range")))
        if path == "/wheels/":
            page = "".join(f'<a href="{wheel}">{wheel}</a>' for wheel in source.wheels)
            self._send(page.encode(), body, type="text/html")
        elif path.startswith("/wheels/"):
            name = path.removeprefix("/wheels/")
            self._file(name, source.wheels.get(name), body)
        elif re.fullmatch(rf"/api/models/{source.repo}(/revision/.*)?", path):
            siblings = [{"rfilename": name} for name in source.files]
            self._json({"id": source.repo, "sha": COMMIT, "siblings": siblings}, body)
        elif path.startswith(f"/api/models/{source.repo}/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": git_digest(data)}
                for name, data in source.files.items()
            ]
            self._json(tree, body)
        elif match := re.fullmatch(rf"/{source.repo}/resolve/[^/]+/(.+)", path):
            self._file(match[1], source.files.get(match[1]), body)
        else:
            self._send(b"{}", body, status=404, **{"X-Error-Code": "RepoNotFound"})

    def _json(self, content: Any, body: bool) -> None:
        self._send(json.dumps(content).encode(), body, type="application/json")

    def _file(self, name: str, data: bytes | None, body: bool) -> None:
        if data is None:
            self._send(b"", body, status=404, **{"X-Error-Code": "EntryNotFound"})
            return
        large = name.endswith(".safetensors")
        tag = hashlib.sha256(data).hexdigest() if large else git_digest(data)
        if name in self.server.tampered:
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        first = 0
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            first = int(wanted[1])
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        cut = self.server.cut_after.pop(name, None) if body else None
        self._send(data[first:], body, status=206 if first else 200, cut=cut, **headers)

    def _send(
        self,
        data: bytes,
        body: bool,
        *,
        status: int = 200,
        type: str = "application/octet-stream",
        cut: int | None = None,
        **headers: str,
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": type, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if not body:
            return
        if cut is not None:
            self.wfile.write(data[:cut])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return
        if not self.server.slow:
            self.wfile.write(data)
            return
        for at in range(0, len(data), 4096):
            self.wfile.write(data[at : at + 4096])
            self.wfile.flush()
            self.server.bytes_sent += 4096
            time.sleep(self.server.slow)


def git_digest(data: bytes) -> str:
    """The name that git, and so the Hub, gives to a small file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
