"""The bench's target for anything that speaks the OpenAI API: vLLM, TensorRT-LLM (`trtllm-serve`), a hosted API, our own.

What a remote server does not say is None or "not measured" here, never guessed: logits, memory, weights. Token ids are
its own where it returns them; else the text is encoded again with the tokenizer given, and `settings` says so.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Coroutine, Sequence
from typing import Any, Literal, Protocol, TypeVar

from inferoptim.config import SamplingParams
from inferoptim.errors import ConfigError, EngineDeadError, UnsupportedError
from inferoptim.targets.base import TargetInfo, TargetRequest, TargetResponse
from inferoptim.targets.http_client import KINDS, Endpoint
from inferoptim.targets.openai_client import Api, OpenAIClient
from inferoptim.targets.openai_stream import Call

T = TypeVar("T")
# Our name for a counter → what servers call it. Source: their /metrics (vllm/v1/metrics/loggers.py; docs/monitoring.md).
COUNTERS = {
    "prefix_cache_hit_tokens": ("inferoptim_prefix_cache_hits_total", "vllm:prefix_cache_hits_total"),
    "prefix_cache_query_tokens": ("inferoptim_prefix_cache_queries_total", "vllm:prefix_cache_queries_total"),
    "preemptions": ("inferoptim_preemptions_total", "vllm:num_preemptions_total"),
    "draft_proposed_tokens": (
        "inferoptim_spec_decode_draft_tokens_total",
        "vllm:spec_decode_num_draft_tokens_total",
    ),
    "draft_accepted_tokens": (
        "inferoptim_spec_decode_accepted_tokens_total",
        "vllm:spec_decode_num_accepted_tokens_total",
    ),
}
_SAMPLE = re.compile(rb"^([a-zA-Z_:][\w:]*)(?:\{[^}]*\})? ([-+0-9.eE]+|NaN|[+-]Inf)", re.MULTILINE)


class Encoder(Protocol):
    """What is needed of a tokenizer; `models.tokenizer.Tokenizer` fits."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...


class OpenAIHttpTarget:
    """One endpoint and one model behind it.

    Args:
        url: of the server, with or without /v1.
        model: default: the only one served.
        api: auto takes completions where they are served; a chat endpoint gets the prompt's text as a user message.
        api_key: sent as a bearer token; never stored.
        tokenizer: encodes answers of servers that return no token ids.
        timeout_s: of one request.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        api: Api | Literal["auto"] = "auto",
        api_key: str | None = None,
        tokenizer: Encoder | None = None,
        timeout_s: float = 600.0,
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._endpoint = Endpoint.parse(url, headers)
        self._model, self._api, self._tokenizer, self._timeout_s = model, api, tokenizer, timeout_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: OpenAIClient | None = None
        self._salted = False
        self._resets = 0

    def load(self) -> TargetInfo:
        """Find the server, its model and what it honours.

        Raises:
            ConfigError: it cannot be reached, or refuses the key.
            UnsupportedError: it does not generate, or says neither token ids nor can they be made.
        """
        started = time.perf_counter()
        self._loop = _new_loop()
        client = OpenAIClient(self._endpoint, model=self._model, timeout_s=self._timeout_s)
        self._client = client
        self._run(client.discover())
        features = self._run(client.probe(self._api))
        if not features.return_token_ids and self._tokenizer is None:
            raise UnsupportedError(
                f"{self._endpoint.url} returns no token ids: give the model's tokenizer, so that its answers can be counted"
            )
        self._salted = self._run(self._accepts_salt(client))
        return TargetInfo(
            name="openai_http",
            version=client.version or "not said",
            settings={
                "url": self._endpoint.url,
                "model": client.model,
                **features.as_dict(),
                "token_ids": "the server's" if features.return_token_ids else "answers encoded again",
                "prefix_cache_reset": "cache_salt"
                if self._salted
                else "not possible: repeated prompts may hit",
            },
            load_s=time.perf_counter() - started,
        )

    def run(
        self, requests: Sequence[TargetRequest], *, concurrency: int | None = None
    ) -> list[TargetResponse]:
        """Serve all requests; a closed loop with `concurrency`, else each at its arrival offset.

        Raises:
            EngineDeadError: the server is gone (nobody listens any more).
        """
        client = self._loaded()
        messages = [self._message(client, request) for request in requests]
        calls = self._run(_send_all(client, messages, [r.arrival_offset_s for r in requests], concurrency))
        if calls and all(call.error == "refused" for call in calls):
            raise EngineDeadError(f"{self._endpoint.url}: {KINDS['refused']}")
        return [self._response(request, call) for request, call in zip(requests, calls, strict=True)]

    def reset(self) -> None:
        """Make what was cached useless: later prompts get another `cache_salt`, where the server knows it.

        Where it does not, nothing can be done from outside; `settings["prefix_cache_reset"]` says so.
        """
        self._resets += 1

    def counters(self) -> dict[str, float]:
        """From the server's /metrics, those it has; {} where it has none."""
        client = self._loaded()
        status, body = self._run(client.get("/metrics"))
        if status != 200:
            return {}
        totals: dict[str, float] = {}
        for name, value in _SAMPLE.findall(body):
            key = name.decode()
            totals[key] = totals.get(key, 0.0) + float(value)
        found = {}
        for ours, theirs in COUNTERS.items():
            known = next((name for name in theirs if name in totals), None)
            if known is not None:
                found[ours] = totals[known]
        return found

    def logits(self, token_ids: Sequence[int]) -> Any:
        """None: the API has no logits."""
        return None

    def close(self) -> None:
        """Drop the connections and the loop."""
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._loop is not None:
            self._loop.run_until_complete(asyncio.sleep(0))  # lets the aborted transports close
            self._loop.close()
            self._loop = None

    def _message(self, client: OpenAIClient, request: TargetRequest) -> bytes:
        chat = client.features.api == "chat"
        prompt: str | Sequence[int] = request.prompt if chat else request.prompt_token_ids
        salt = f"inferoptim-{self._resets}" if self._salted else None
        return client.message(prompt, request.sampling, token_ids=True, cache_salt=salt)

    async def _accepts_salt(self, client: OpenAIClient) -> bool:
        asked = SamplingParams(max_tokens=1)
        call = await client.call(client.message("Hello", asked, cache_salt="inferoptim-probe"))
        return call.error in (None, "empty")

    def _response(self, request: TargetRequest, call: Call) -> TargetResponse:
        error = None if call.error is None else f"{call.error} {call.detail}".strip()
        ids = tuple(call.token_ids or ())
        if error is None and call.token_ids is None and self._tokenizer is not None:
            ids = tuple(self._tokenizer.encode(call.text, add_special_tokens=False))
        if error is None and call.output_tokens is not None and call.output_tokens != len(ids):
            error = f"the server counted {call.output_tokens} tokens; its answer holds {len(ids)}"
        times = call.token_times_s if error is None else None
        return TargetResponse(
            request_id=request.request_id,
            token_ids=ids,
            sent_s=call.sent_s,
            token_times_s=times if times is not None and len(times) == len(ids) else None,
            finished_s=call.finished_s,
            num_cached_prompt_tokens=call.cached_prompt_tokens or 0,
            error=error,
        )

    def _loaded(self) -> OpenAIClient:
        if self._client is None:
            raise ConfigError("openai_http: load() comes first")
        return self._client

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        assert self._loop is not None
        return self._loop.run_until_complete(work)


async def _send_all(
    client: OpenAIClient, messages: Sequence[bytes], offsets_s: Sequence[float], concurrency: int | None
) -> list[Call]:
    calls: list[Call | None] = [None] * len(messages)
    start = time.perf_counter()

    async def at_its_time(index: int) -> None:
        while (delay := start + offsets_s[index] - time.perf_counter()) > 0:
            await asyncio.sleep(delay)
        calls[index] = await client.call(messages[index])

    if concurrency is None:
        await asyncio.gather(*(at_its_time(i) for i in range(len(messages))))
    else:
        waiting = iter(range(len(messages)))

        async def worker() -> None:
            for index in waiting:
                calls[index] = await client.call(messages[index])

        await asyncio.gather(*(worker() for _ in range(concurrency)))
    return [call for call in calls if call is not None]


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
