"""The server's side of the engine: starts its process, sends requests, hands out what comes back, notices its death."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from enum import Enum
from typing import Any, Protocol

from inferoptim import errors
from inferoptim.config import EngineConfig
from inferoptim.errors import EngineDeadError, InferOptimError
from inferoptim.serving import messages as m

log = logging.getLogger("inferoptim.serving")

_STOP_TIMEOUT_S = 5.0
_SOCKET_BUFFER_BYTES = 4 << 20


class EngineState(Enum):
    """Where the engine stands."""

    LOADING = "loading"
    READY = "ready"
    DEAD = "dead"
    STOPPED = "stopped"  # on purpose


class Sink(Protocol):
    """Where the outputs of one request go. Called on the event loop; must not block."""

    def on_output(self, output: m.Output, at_s: float) -> None: ...
    def on_error(self, error: InferOptimError) -> None: ...


class Observer(Protocol):
    """Who else wants to know: the metrics."""

    def on_stats(self, stats: m.Stats) -> None: ...
    def on_engine_ready(self, info: dict[str, Any]) -> None: ...
    def on_engine_death(self) -> None: ...
    def on_usage(self, request_id: str, prefill_s: float, decode_s: float, left: bool) -> None: ...


class EngineClient:
    """One engine process at a time; a new one after a death if `restart` says so.

    Owner of everything here: the event loop's thread.

    Args:
        core: 'package.module:factory' of the engine, see `engine_process`.
        config: what it loads.
        core_options: more arguments of the factory.
        observer: told of counters and of deaths.
        restart: start a new process when a running one dies; never when one dies while it loads.
        on_ready: called when the first model is loaded.
        on_down: called once, when the engine is gone and will not come back, with the reason.
    """

    def __init__(
        self,
        core: str,
        config: EngineConfig,
        observer: Observer,
        *,
        core_options: dict[str, Any],
        restart: bool,
        on_ready: Callable[[], None],
        on_down: Callable[[InferOptimError], None],
    ) -> None:
        self._start = m.Start(core, config.model_dump(), core_options)
        self._observer = observer
        self._restart, self._on_ready, self._on_down = restart, on_ready, on_down
        self._sinks: dict[str, Sink] = {}
        self._checks: dict[int, asyncio.Future[m.Checked]] = {}
        self._numbers = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._failure: InferOptimError | None = None  # what the dying engine said
        self._reaper: asyncio.Task[None] | None = None
        self.state = EngineState.LOADING
        self.ready: m.Ready | None = None
        self.deaths = 0

    @property
    def pid(self) -> int | None:
        """Process id of the engine, while there is one."""
        return self._process.pid if self._process is not None else None

    @property
    def num_requests(self) -> int:
        """Requests in the engine."""
        return len(self._sinks)

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the process; returns at once. `state` becomes READY when the model is loaded."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
        self.state, self._failure = EngineState.LOADING, None
        command = [sys.executable, "-m", "inferoptim.serving.engine_process", str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        loop = asyncio.get_running_loop()
        process = self._process
        transport, _ = await loop.create_unix_connection(lambda: _Wire(self, process), sock=ours)
        self._transport = transport
        self._send(self._start)

    async def stop(self) -> None:
        """End the process: closing the socket asks it to, a signal follows when it does not."""
        self.state = EngineState.STOPPED
        if self._transport is not None:
            self._transport.close()
        self._fail_all(EngineDeadError("the server is shutting down"))
        if self._reaper is not None:
            await self._reaper
        if self._process is not None:
            await asyncio.get_running_loop().run_in_executor(None, _reap, self._process)

    # -- requests -----------------------------------------------------------------------------------------------------

    def submit(self, add: m.Add, sink: Sink) -> None:
        """Send a request to the engine; its sink hears of everything that follows.

        Raises:
            EngineDeadError: the engine is not running.
        """
        if self.state is not EngineState.READY:
            raise EngineDeadError(f"the engine is not running ({self.state.value})")
        self._sinks[add.request_id] = sink
        self._send(add)

    def abort(self, request_id: str) -> None:
        """The request is no longer wanted; unknown or ended ones are ignored. Its sink hears nothing more."""
        if self._sinks.pop(request_id, None) is not None:
            self._send(m.Abort(request_id))

    def finish(self, request_id: str) -> None:
        """The request's text met a stop string. Its sink hears nothing more."""
        if self._sinks.pop(request_id, None) is not None:
            self._send(m.Finish(request_id))

    async def check(self) -> m.Checked:
        """Ask the engine to verify its block accounting, between two steps."""
        if self.state is not EngineState.READY:
            raise EngineDeadError(f"the engine is not running ({self.state.value})")
        number = next(self._numbers)
        future: asyncio.Future[m.Checked] = asyncio.get_running_loop().create_future()
        self._checks[number] = future
        self._send(m.Check(number))
        return await future

    def _send(self, message: m.ToEngine) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(m.encode_frame(message))

    # -- what the engine says ----------------------------------------------------------------------------------------

    def _receive(self, frame: bytes) -> None:
        message = m.decode_to_server(frame)
        if isinstance(message, m.Step):
            sinks = self._sinks
            for output in message.outputs:
                sink = sinks.get(output.request_id)
                if sink is None:
                    continue  # left while the step ran
                if output.finish_reason is not None:
                    del sinks[output.request_id]
                sink.on_output(output, message.at_s)
            for used in message.used:
                self._observer.on_usage(*used)
            if message.stats is not None:
                self._observer.on_stats(message.stats)
        elif isinstance(message, m.Ready):
            self.ready, self.state = message, EngineState.READY
            self._observer.on_engine_ready(message.info)
            if self.deaths == 0:
                self._on_ready()
        elif isinstance(message, m.Rejected):
            sink = self._sinks.pop(message.request_id, None)
            if sink is not None:
                sink.on_error(_error(message.kind, message.message))
        elif isinstance(message, m.Failed):
            self._failure = _error(message.kind, message.message)
        elif isinstance(message, m.Checked):
            future = self._checks.pop(message.number, None)
            if future is not None and not future.done():
                future.set_result(message)

    def _lost(self, process: subprocess.Popen[bytes]) -> None:
        """The engine's end of the socket closed."""
        if process is not self._process or self.state in (EngineState.STOPPED, EngineState.DEAD):
            return
        was_ready = self.state is EngineState.READY
        self.state = EngineState.DEAD
        self.deaths += 1
        self._observer.on_engine_death()
        failure = self._failure or EngineDeadError(
            "the engine process ended without a word (killed, or out of memory?)"
        )
        log.error("engine process %d died: %s", process.pid, failure)
        self._fail_all(EngineDeadError(f"the engine died: {failure}"))
        self._reaper = asyncio.get_running_loop().create_task(self._bury(process, was_ready, failure))

    async def _bury(
        self, process: subprocess.Popen[bytes], was_ready: bool, failure: InferOptimError
    ) -> None:
        started_s = time.perf_counter()
        await asyncio.get_running_loop().run_in_executor(None, _reap, process)
        if self.state is EngineState.STOPPED:
            return
        if was_ready and self._restart:
            log.warning("starting a new engine (%.1f s after the death)", time.perf_counter() - started_s)
            await self.start()
        else:
            self._on_down(failure)

    def _fail_all(self, error: InferOptimError) -> None:
        sinks, self._sinks = list(self._sinks.values()), {}
        for sink in sinks:
            sink.on_error(error)
        checks, self._checks = list(self._checks.values()), {}
        for future in checks:
            if not future.done():
                future.set_exception(EngineDeadError(str(error)))


class _Wire(asyncio.Protocol):
    """Bytes from one engine process."""

    def __init__(self, client: EngineClient, process: subprocess.Popen[bytes]) -> None:
        self._client, self._process = client, process
        self._reader = m.FrameReader()

    def data_received(self, data: bytes) -> None:
        for frame in self._reader.feed(data):
            self._client._receive(frame)

    def connection_lost(self, exc: Exception | None) -> None:
        self._client._lost(self._process)


def _reap(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


def _error(kind: str, message: str) -> InferOptimError:
    """The error that another process named."""
    found = getattr(errors, kind, None)
    if isinstance(found, type) and issubclass(found, InferOptimError):
        return found(message)
    return EngineDeadError(f"{kind}: {message}")
