"""The synchronous Python API: `LLM("smollm2-135m").generate([...])`, `.chat(...)`, `.stream(...)`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any, overload

from inferoptim.config import EngineConfig, SamplingParams
from inferoptim.engine.core import EngineCore
from inferoptim.engine.output import RequestOutput, TextStream
from inferoptim.engine.request import Request, TokenOutput
from inferoptim.engine.resident import return_freed_memory
from inferoptim.errors import RequestError
from inferoptim.models.tokenizer import Tokenizer, load_tokenizer

__all__ = ["LLM", "RequestOutput"]

Prompt = str | Sequence[int]


class RequestState:
    """One request between its tokens and its text; shared by the sync and the async API."""

    def __init__(self, request: Request, tokenizer: Tokenizer) -> None:
        self.request = request
        self._stream = TextStream(tokenizer, request.sampling)
        sampling = request.sampling
        self.output = RequestOutput(
            request.request_id,
            request.prompt_token_ids,
            [],
            "",
            logprobs=[] if sampling.logprobs is not None else None,
            prompt_logprobs=[] if sampling.prompt_logprobs is not None else None,
        )

    def update(self, tokens: TokenOutput) -> bool:
        """Take one step's tokens; True when a stop string ended the request here."""
        out = self.output
        kept = self._stream.append(tokens.token_ids)
        out.token_ids.extend(tokens.token_ids[:kept])
        if out.logprobs is not None and tokens.logprobs:
            out.logprobs.extend(tokens.logprobs[:kept])
        if out.prompt_logprobs is not None and tokens.prompt_logprobs:
            out.prompt_logprobs.extend(tokens.prompt_logprobs)
        out.num_cached_tokens = tokens.num_cached_tokens
        if self._stream.stopped:
            out.finish_reason = "stop"
        elif tokens.finish_reason is not None:
            out.finish_reason = tokens.finish_reason.value
            self._stream.finish()
        out.delta = self._stream.take(out.finish_reason is not None)
        out.text += out.delta
        return self._stream.stopped and tokens.finish_reason is None


class LLM:
    """A model and its engine in this process.

    Args:
        model: name, Hub id, local folder or .gguf file; or a whole `EngineConfig`.
        **fields: any field of `EngineConfig` (levers, memory, device).

    Raises:
        InferOptimError: see `EngineCore`.
    """

    def __init__(self, model: str | EngineConfig = "smollm2-135m", **fields: Any) -> None:
        if isinstance(model, EngineConfig):
            config = model.model_copy(update=fields) if fields else model
            if fields:
                config = EngineConfig.create(**config.model_dump())
        else:
            config = EngineConfig.create(model=model, **fields)
        self.core = EngineCore(config)
        self.tokenizer = load_tokenizer(self.core.files.folder)
        return_freed_memory()  # reading tokenizer.json takes more than what stays of it
        self._ids = itertools.count()

    @property
    def config(self) -> EngineConfig:
        """The resolved configuration."""
        return self.core.config

    @overload
    def generate(  # type: ignore[overload-overlap]  # a str is a Sequence[str], too; the first one is meant
        self, prompts: str, sampling: SamplingParams | None = None
    ) -> RequestOutput: ...
    @overload
    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[RequestOutput]: ...
    def generate(
        self,
        prompts: str | Sequence[Prompt],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> RequestOutput | list[RequestOutput]:
        """Complete prompts (text, or token ids), all at once; outputs in the order of the prompts.

        Raises:
            RequestError: a prompt is empty or longer than the context; no request was started.
        """
        if isinstance(prompts, str):
            return self.generate([prompts], sampling)[0]
        samplings = self._samplings(sampling, len(prompts))
        states = [self._state(prompt, s) for prompt, s in zip(prompts, samplings, strict=True)]
        for _ in self._run(states):
            pass
        return [state.output for state in states]

    def chat(
        self, messages: Sequence[dict[str, Any]], sampling: SamplingParams | None = None
    ) -> RequestOutput:
        """Answer a conversation, through the model's own chat template."""
        return self.generate([self._chat_ids(messages)], sampling)[0]

    def stream(self, prompt: Prompt, sampling: SamplingParams | None = None) -> Iterator[RequestOutput]:
        """Complete one prompt, yielding as text arrives; `delta` is what is new. Leaving the loop aborts the request."""
        return self._run([self._state(prompt, sampling or SamplingParams())])

    def _run(self, states: list[RequestState]) -> Iterator[RequestOutput]:
        by_id = {state.request.request_id: state for state in states}
        added: list[str] = []
        try:
            for state in states:
                self.core.add(state.request)
                added.append(state.request.request_id)
            while self.core.has_work:
                for tokens in self.core.step():
                    state = by_id[tokens.request_id]
                    if state.update(tokens):
                        self.core.finish(tokens.request_id)
                    yield state.output
        finally:
            for request_id in added:
                self.core.abort(request_id)  # no effect on those that ended

    def _state(self, prompt: Prompt, sampling: SamplingParams) -> RequestState:
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        request = Request(
            request_id=str(next(self._ids)),
            prompt_token_ids=tuple(ids),
            sampling=sampling,
            arrival_s=time.perf_counter(),
            eos_token_ids=frozenset(self.core.spec.eos_token_ids),
        )
        return RequestState(request, self.tokenizer)

    def _chat_ids(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        return self.tokenizer.encode(
            self.tokenizer.apply_chat_template(list(messages)), add_special_tokens=False
        )

    @staticmethod
    def _samplings(
        sampling: SamplingParams | Sequence[SamplingParams] | None, count: int
    ) -> Sequence[SamplingParams]:
        if sampling is None or isinstance(sampling, SamplingParams):
            return [sampling or SamplingParams()] * count
        if len(sampling) != count:
            raise RequestError(
                f"{count} prompts but {len(sampling)} sampling parameters; give one, or one a prompt"
            )
        return sampling
