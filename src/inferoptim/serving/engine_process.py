"""The engine's own process: reads commands from the server, steps the engine, writes what came out.

Nothing here waits for the server while there is work: commands are taken between two steps, outputs that the socket
does not accept are kept and sent later. The process ends when the server's end of the socket is closed.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
import traceback
from importlib import import_module
from typing import Any

from inferoptim.config import EngineConfig, SamplingParams
from inferoptim.engine.opening import Opening
from inferoptim.engine.request import Request, TokenLogprobs, TokenOutput
from inferoptim.errors import InferOptimError
from inferoptim.serving import messages as m
from inferoptim.serving.core_interface import Core
from inferoptim.serving.engine_time import EngineTime

ENGINE_CORE = "inferoptim.engine.core:EngineCore"
NULL_CORE = "inferoptim.serving.null_engine:NullCore"

_RECEIVE_BYTES = 1 << 20
_MOST_UNSENT_BYTES = 8 << 20  # a server this far behind stops the engine, or memory would grow without limit
_STATS_PERIOD_S = 0.05  # counters are sent no more often than this; a scrape sees them no older


class Connection:
    """The engine's end of the socket: never blocks on sending."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._reader = m.FrameReader()
        self._unsent = bytearray()

    @property
    def choked(self) -> bool:
        """True when the server is so far behind that the engine must wait."""
        return len(self._unsent) > _MOST_UNSENT_BYTES

    def send(self, message: Any) -> None:
        """Send, or keep what the socket does not take now."""
        self._unsent += m.encode_frame(message)
        self.flush()

    def flush(self) -> None:
        """Send what was kept, as much as the socket takes."""
        while self._unsent:
            try:
                sent = self._socket.send(self._unsent)
            except BlockingIOError:
                return
            del self._unsent[:sent]

    def receive(self, wait: bool) -> list[Any]:
        """Commands that have arrived; with `wait`, until there is one or the socket takes unsent bytes again.

        Raises:
            EOFError: the server closed its end.
        """
        if wait:
            select.select([self._socket], [self._socket] if self._unsent else [], [])
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return []
        if not data:
            raise EOFError
        return [m.decode_to_engine(frame) for frame in self._reader.feed(data)]

    def send_last(self, message: Any) -> None:
        """Send everything, waiting for the server to take it; for the last words of a dying engine."""
        self._socket.settimeout(5.0)
        with contextlib.suppress(OSError):
            self._socket.sendall(bytes(self._unsent) + m.encode_frame(message))


class EngineLoop:
    """One engine and its connection."""

    def __init__(self, core: Core, connection: Connection) -> None:
        self._core = core
        self._connection = connection
        self._time = EngineTime()
        self._silent: set[str] = set()  # requests without an output so far
        self._stats_due_s = 0.0
        self._changed = False  # a command changed the state since the latest stats

    def run(self) -> None:
        """Until the server closes its end (EOFError) or the engine raises."""
        while True:
            self.turn()

    def turn(self) -> None:
        """Take the commands that are there, make one step. Waits for a command only when there is nothing to do."""
        core, connection = self._core, self._connection
        connection.flush()
        idle = not core.has_work or connection.choked
        if idle and self._changed:
            self._report(time.perf_counter(), [], due=True)
        for command in connection.receive(wait=idle):
            self._obey(command)
        if core.has_work and not connection.choked:
            self._step()

    def _step(self) -> None:
        core = self._core
        started_s = time.perf_counter()
        outputs = core.step()
        ended_s = time.perf_counter()
        self._time.step(started_s, ended_s, core.step_work())
        self._report(ended_s, [self._output(o) for o in outputs], due=not core.has_work)

    def _report(self, now_s: float, outputs: list[m.Output], due: bool) -> None:
        if not due and now_s < self._stats_due_s:
            if outputs:
                self._connection.send(m.Step(now_s, outputs, None, []))
            return
        counters = {**self._core.counters(), "busy_s": self._time.busy_s}
        stats = m.Stats(counters, self._core.kv_usage())
        self._stats_due_s = now_s + _STATS_PERIOD_S
        self._changed = False
        self._connection.send(m.Step(now_s, outputs, stats, self._time.drain()))

    def _obey(self, command: Any) -> None:
        self._changed = True
        if isinstance(command, m.Add):
            self._add(command)
        elif isinstance(command, m.Abort):
            self._core.abort(command.request_id)
            self._left(command.request_id)
        elif isinstance(command, m.Finish):
            self._core.finish(command.request_id)
            self._left(command.request_id)
        elif isinstance(command, m.Check):
            problem = ""
            try:
                self._core.check()
            except AssertionError as error:
                problem = str(error) or "the block accounting is wrong"
            self._connection.send(m.Checked(command.number, problem, self._core.kv_usage()))
        else:
            raise ValueError(f"unexpected command {type(command).__name__}")

    def _add(self, command: m.Add) -> None:
        try:
            request = Request(
                request_id=command.request_id,
                prompt_token_ids=tuple(command.prompt_token_ids),
                sampling=SamplingParams.create(**command.sampling),
                arrival_s=command.arrival_s,
                eos_token_ids=frozenset(self._core.eos_token_ids),
                cache_salt=command.cache_salt,
            )
            self._core.add(request)
        except InferOptimError as error:
            self._connection.send(m.Rejected(command.request_id, type(error).__name__, str(error)))
        else:
            self._silent.add(command.request_id)
            self._time.add(command.request_id, len(command.prompt_token_ids))

    def _left(self, request_id: str) -> None:
        self._silent.discard(request_id)
        self._time.leave(request_id)

    def _output(self, o: TokenOutput) -> m.Output:
        scheduled_s = 0.0
        if o.token_ids and o.request_id in self._silent:
            self._silent.remove(o.request_id)
            scheduled_s = self._time.scheduled_s(o.request_id)
        if o.finish_reason is not None:
            self._time.leave(o.request_id)
        return m.Output(
            o.request_id,
            list(o.token_ids),
            o.finish_reason.value if o.finish_reason is not None else None,
            o.num_cached_tokens,
            _logprobs(o.logprobs),
            _logprobs(o.prompt_logprobs),
            scheduled_s,
        )


def _logprobs(values: tuple[TokenLogprobs, ...] | None) -> list[m.Logprob] | None:
    if values is None:
        return None
    return [m.Logprob(v.token_id, v.logprob, list(v.top)) for v in values]


def load_core(start: m.Start) -> Core:
    """Build the engine that a start command names."""
    module, _, factory = start.core.partition(":")
    config, options = EngineConfig.create(**start.config), dict(start.options)
    if start.core == ENGINE_CORE:
        options["opening"] = Opening(config.model)  # before torch is imported, which takes seconds
    core: Core = getattr(import_module(module), factory)(config, **options)
    return core


def serve_socket(sock: socket.socket) -> int:
    """Run an engine on this socket until the other end closes; the process's exit status."""
    connection = Connection(sock)
    try:
        commands = connection.receive(wait=True)
        while not commands:
            commands = connection.receive(wait=True)
        start = commands[0]
        if not isinstance(start, m.Start):
            raise ValueError(f"the first command must be start, not {type(start).__name__}")
        core = load_core(start)
        core.prepare_grammars()
        connection.send(
            m.Ready(
                core.info(),
                core.max_model_len,
                core.config.max_num_seqs,
                core.vocab_size,
                list(core.eos_token_ids),
            )
        )
        EngineLoop(core, connection).run()
    except (EOFError, ConnectionError):
        return 0  # the server is gone, and with it the reason to live
    except Exception as error:
        if not isinstance(error, InferOptimError):
            traceback.print_exc()
        connection.send_last(m.Failed(type(error).__name__, str(error)))
        return 1
    return 0


def main() -> int:
    """Entry of the child process: the socket's file descriptor is the only argument."""
    # The server decides when the engine ends: a Ctrl-C in the terminal reaches both, and requests drain first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as sock:
        status = serve_socket(sock)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # worker threads of the kernels have nothing left to do


if __name__ == "__main__":
    main()
