"""The asynchronous Python API: one thread owns the engine, coroutines talk to it through queues."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from inferoptim.config import EngineConfig, SamplingParams
from inferoptim.engine.core import EngineCore
from inferoptim.engine.llm import Prompt, RequestState
from inferoptim.engine.output import RequestOutput
from inferoptim.engine.request import Request
from inferoptim.engine.resident import return_freed_memory
from inferoptim.errors import EngineDeadError, InferOptimError
from inferoptim.models.tokenizer import load_tokenizer


class AsyncLLM:
    """The engine on its own thread. `generate` may be called from any number of tasks of one event loop.

    A task that is cancelled, or a generator that is closed, aborts its request: its blocks are free before the next
    step. When the step loop dies, every request in flight and every later one raises `EngineDeadError`.
    """

    def __init__(self, model: str | EngineConfig = "smollm2-135m", **fields: Any) -> None:
        config = model if isinstance(model, EngineConfig) else EngineConfig.create(model=model, **fields)
        self.core = EngineCore(config)
        self.tokenizer = load_tokenizer(self.core.files.folder)
        return_freed_memory()  # reading tokenizer.json takes more than what stays of it
        self._ids = itertools.count()
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._states: dict[str, tuple[RequestState, asyncio.Queue[RequestOutput | BaseException], Any]] = {}
        self._death: BaseException | None = None
        self._submit = threading.Lock()  # a request is submitted before the death, or refused after it
        self._thread = threading.Thread(target=self._loop, name="inferoptim-engine", daemon=True)
        self._thread.start()

    async def generate(
        self, prompt: Prompt, sampling: SamplingParams | None = None, request_id: str | None = None
    ) -> AsyncIterator[RequestOutput]:
        """Complete one prompt (text or token ids), yielding after every step that gave tokens.

        Each yield is a snapshot whose `delta` is the text added since the previous one; `token_ids` and the logprobs
        are shared with later snapshots and go on growing.

        Raises:
            RequestError, CapacityError: this request cannot run; others go on.
            EngineDeadError: the step loop died.
        """
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        request = Request(
            request_id=request_id or f"r{next(self._ids)}",
            prompt_token_ids=tuple(ids),
            sampling=sampling or SamplingParams(),
            arrival_s=time.perf_counter(),
            eos_token_ids=frozenset(self.core.spec.eos_token_ids),
        )
        state = RequestState(request, self.tokenizer)
        outputs: asyncio.Queue[RequestOutput | BaseException] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        with self._submit:
            if self._death is not None:
                raise EngineDeadError(f"the engine stopped: {self._death}") from self._death
            self._commands.put(lambda: self._add(state, outputs, loop))
        try:
            while True:
                item = await outputs.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                if item.finish_reason is not None:
                    return
        finally:
            self._commands.put(lambda: self._abort(request.request_id))

    async def reset_prefix_cache(self) -> None:
        """Forget cached prefixes, between two steps; refused while requests are in the engine."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def reset() -> None:
            try:
                self.core.reset_prefix_cache()
            except InferOptimError as error:
                loop.call_soon_threadsafe(done.set_exception, error)
            else:
                loop.call_soon_threadsafe(done.set_result, None)

        self._commands.put(reset)
        await done

    def close(self) -> None:
        """Stop the step loop; requests in flight raise `EngineDeadError`."""
        self._commands.put(None)
        self._thread.join()

    # -- the engine's thread: everything below runs there -----------------------------------------------------------

    def _loop(self) -> None:
        try:
            while True:
                block = not self.core.has_work
                while True:
                    try:
                        command = self._commands.get(block=block)
                    except queue.Empty:
                        break
                    if command is None:
                        self._die(EngineDeadError("the engine was closed"))
                        return
                    command()
                    block = False
                self._step()
        except BaseException as error:  # whatever it is, nobody may wait for ever
            self._die(error)

    def _step(self) -> None:
        for tokens in self.core.step():
            entry = self._states.get(tokens.request_id)
            if entry is None:
                continue
            state, outputs, loop = entry
            if state.update(tokens):
                self.core.finish(tokens.request_id)
            if state.output.finish_reason is not None:
                del self._states[tokens.request_id]
            _send(loop, outputs, dataclasses.replace(state.output))

    def _add(self, state: RequestState, outputs: asyncio.Queue[Any], loop: asyncio.AbstractEventLoop) -> None:
        try:
            self.core.add(state.request)
        except InferOptimError as error:
            _send(loop, outputs, error)
        else:
            self._states[state.request.request_id] = (state, outputs, loop)

    def _abort(self, request_id: str) -> None:
        if self._states.pop(request_id, None) is not None:
            self.core.abort(request_id)

    def _die(self, error: BaseException) -> None:
        with self._submit:
            self._death = error
        while not self._commands.empty():
            command = self._commands.get()
            if command is not None:
                command()  # the requests submitted in time join those that are told of the death
        for _, outputs, loop in self._states.values():
            _send(loop, outputs, EngineDeadError(f"the engine stopped: {error}"))
        self._states.clear()


def _send(loop: asyncio.AbstractEventLoop, outputs: asyncio.Queue[Any], item: Any) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(outputs.put_nowait, item)
