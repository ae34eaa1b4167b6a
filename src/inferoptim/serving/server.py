"""One server's life: bind, load, serve, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn

from inferoptim.config import EngineConfig
from inferoptim.errors import ConfigError, InferOptimError
from inferoptim.hardware.gpu_meter import GpuMeter, open_gpu_meters
from inferoptim.models.hub import model_folder
from inferoptim.models.tokenizer import load_tokenizer
from inferoptim.serving.access_log import AccessLog
from inferoptim.serving.admission import Admission
from inferoptim.serving.app import create_app
from inferoptim.serving.auth import ApiKeys
from inferoptim.serving.engine_client import EngineClient
from inferoptim.serving.engine_process import ENGINE_CORE
from inferoptim.serving.exporter import Exporter
from inferoptim.serving.http_protocol import BoundedProtocol
from inferoptim.serving.metrics import Metrics
from inferoptim.serving.money import Ledger, Prices
from inferoptim.serving.settings import ServerSettings
from inferoptim.serving.state import ServerState
from inferoptim.serving.tracing import OtlpTracer

log = logging.getLogger("inferoptim.serving")

_MOST_FILES = 65536
_KEEP_ALIVE_S = 75
_CLOSE_TIMEOUT_S = 2.0  # for answers that are complete but not yet read, after the drain
_UNREAD_TIMEOUT_MS = 60_000  # a client that acknowledges nothing for so long loses its connection


@dataclass(slots=True)
class Announcement:
    """What the operator is told once requests are taken."""

    host: str
    port: int
    state: ServerState


def serve(
    settings: ServerSettings,
    engine_config: EngineConfig,
    *,
    keys: ApiKeys | None = None,
    core: str = ENGINE_CORE,
    core_options: dict[str, Any] | None = None,
    on_bound: Callable[[Announcement], None] = lambda _: None,
    on_ready: Callable[[Announcement], None] = lambda _: None,
) -> None:
    """Serve until a signal, or until the engine is gone for good.

    Args:
        settings: of the server.
        engine_config: of the engine.
        keys: who may call; None lets everybody.
        core: which engine, see `engine_process`.
        core_options: more arguments of its factory.
        on_bound: called when the port is open and the model starts to load.
        on_ready: called when the model is loaded.

    Raises:
        ConfigError: the port cannot be had.
        InferOptimError: the model cannot be loaded, or the engine died and may not be restarted.
    """
    _raise_file_limit()
    sock = _bind(settings)
    try:
        _loop_runner()(
            _serve(sock, settings, engine_config, keys, core, core_options or {}, on_bound, on_ready)
        )
    finally:
        sock.close()


def _loop_runner() -> Callable[..., None]:
    try:
        import uvloop
    except ModuleNotFoundError:
        return asyncio.run
    runner: Callable[..., None] = uvloop.run
    return runner


async def _serve(
    sock: socket.socket,
    settings: ServerSettings,
    engine_config: EngineConfig,
    keys: ApiKeys | None,
    core: str,
    core_options: dict[str, Any],
    on_bound: Callable[[Announcement], None],
    on_ready: Callable[[Announcement], None],
) -> None:
    tokenizer = load_tokenizer(model_folder(engine_config.model))
    tokenizer.detokenizer()  # one that cannot be streamed is refused before the weights are read
    stop = asyncio.Event()
    failure: list[InferOptimError] = []

    def engine_down(error: InferOptimError) -> None:
        failure.append(error)
        stop.set()

    gpus: list[GpuMeter] = []

    def loaded() -> None:
        gpus.extend(open_gpu_meters(metrics.info.get("gpu_uuids", ())))
        on_ready(announcement)

    ledger = Ledger(Prices(settings.usd_per_hour, settings.usd_per_kwh), settings.max_tenants)
    metrics = Metrics(ledger)
    engine = EngineClient(
        core,
        engine_config,
        metrics,
        core_options=core_options,
        restart=settings.on_engine_death == "restart",
        on_ready=loaded,
        on_down=engine_down,
    )
    host, port = sock.getsockname()[:2]
    tracer = OtlpTracer(settings.otlp_endpoint, (host, port)) if settings.otlp_endpoint is not None else None
    access_log = None if settings.access_log is None else AccessLog(settings.access_log)
    state = ServerState(
        settings, tokenizer, engine, metrics, Admission(settings.max_queue), keys, tracer, access_log
    )
    announcement = Announcement(host, port, state)
    exporter = Exporter(
        metrics,
        settings.served_model_names[0],
        lambda: engine.pid,
        alias=settings.metrics_alias == "vllm",
        gpus=gpus,
    )
    server = _Listener(
        uvicorn.Config(
            create_app(state, exporter.registry()),
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(_CLOSE_TIMEOUT_S),
            server_header=False,
        )
    )
    signals = _Signals(stop)
    with signals.installed():
        await engine.start()
        listener = asyncio.create_task(server.serve([sock]))
        on_bound(announcement)
        stopper = asyncio.create_task(stop.wait())
        await asyncio.wait((stopper, listener), return_when=asyncio.FIRST_COMPLETED)
        stopper.cancel()
        await _drain(state, settings.drain_timeout_s, signals.second)
        await engine.stop()
        server.should_exit = True
        await listener
    state.workers.shutdown(wait=False, cancel_futures=True)
    if tracer is not None:
        tracer.close()
    if access_log is not None:
        access_log.close()
    if failure:
        raise failure[0]


class _Listener(uvicorn.Server):
    """uvicorn without its own signal handlers: this server drains before anything is closed."""

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        """Leave signals alone."""
        return contextlib.nullcontext()


async def _drain(state: ServerState, timeout_s: float, hurry: asyncio.Event) -> None:
    """Refuse new work and wait for what is inside; at most `timeout_s`, or until a second signal."""
    state.draining = True
    if state.num_requests == 0:
        return
    log.warning("draining: %d requests inside, at most %g s", state.num_requests, timeout_s)
    waits = [asyncio.ensure_future(state.idle.wait()), asyncio.ensure_future(hurry.wait())]
    _, unfinished = await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for wait in unfinished:
        wait.cancel()
    if state.num_requests:
        log.warning("giving up on %d requests", state.num_requests)


class _Signals:
    """SIGTERM and SIGINT: the first asks for a drain, the second for an end now."""

    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop
        self.second = asyncio.Event()

    def _received(self) -> None:
        if self._stop.is_set():
            self.second.set()
        self._stop.set()

    def installed(self) -> contextlib.AbstractContextManager[None]:
        """Handlers while the block runs."""

        @contextlib.contextmanager
        def handlers() -> Iterator[None]:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._received)
            try:
                yield
            finally:
                for number in (signal.SIGTERM, signal.SIGINT):
                    loop.remove_signal_handler(number)

        return handlers()


def _raise_file_limit() -> None:
    """A connection is a file descriptor, and the usual soft limit of 1024 is soon reached; the hard one is higher."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _bind(settings: ServerSettings) -> socket.socket:
    """The port, taken at once but not yet listening: until the model's files are here, connections are refused."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        user_timeout = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux; accepted connections inherit it
        if user_timeout is not None:
            sock.setsockopt(socket.IPPROTO_TCP, user_timeout, _UNREAD_TIMEOUT_MS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind((settings.host, settings.port))
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}"
        ) from error
    return sock
