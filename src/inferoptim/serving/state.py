"""Everything that one running server owns."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from inferoptim.models.tokenizer import Tokenizer
from inferoptim.serving.access_log import AccessLog
from inferoptim.serving.admission import Admission
from inferoptim.serving.auth import ApiKeys
from inferoptim.serving.engine_client import EngineClient, EngineState
from inferoptim.serving.metrics import Metrics
from inferoptim.serving.problems import HttpError
from inferoptim.serving.prompts import Limits
from inferoptim.serving.settings import ServerSettings
from inferoptim.serving.tracing import Tracer


@dataclass(slots=True)
class ServerState:
    """The parts, and whether new work is taken. Owner: the event loop's thread."""

    settings: ServerSettings
    tokenizer: Tokenizer
    engine: EngineClient
    metrics: Metrics
    admission: Admission
    keys: ApiKeys | None
    tracer: Tracer | None = None
    access_log: AccessLog | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    draining: bool = False
    num_requests: int = 0  # generation requests between arrival and last byte
    idle: asyncio.Event = field(default_factory=asyncio.Event)  # set while num_requests is 0
    workers: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(2, thread_name_prefix="inferoptim-prompt")
    )

    def limits(self) -> Limits:
        """Sizes that requests must respect.

        Raises:
            HttpError: 503, no model is loaded.
        """
        self.check_available()
        ready = self.engine.ready
        assert ready is not None
        return Limits(ready.max_model_len, ready.vocab_size, self.settings.max_tokens)

    def check_available(self) -> None:
        """Whether new work is taken.

        Raises:
            HttpError: 503 with a reason.
        """
        if self.draining:
            raise HttpError(503, "the server is shutting down", code="draining", headers={"Retry-After": "1"})
        state = self.engine.state
        if state is not EngineState.READY:
            words = {EngineState.LOADING: "the model is loading"}
            raise HttpError(
                503,
                words.get(state, "the engine is not running"),
                code="not_ready",
                headers={"Retry-After": "5"},
            )

    def enter(self) -> None:
        """A generation request arrived."""
        self.num_requests += 1
        self.idle.clear()

    def leave(self) -> None:
        """It is answered, or its client is gone."""
        self.num_requests -= 1
        if self.num_requests == 0:
            self.idle.set()
