"""What an OpenAI endpoint is asked and how: its model, the optional fields it honours, the bytes of each request.

OpenAI's API says nothing of token ids, exact output lengths or how many tokens a chunk holds. vLLM, TensorRT-LLM and
our own server have fields for these; a strict server refuses them. So `probe` sends one request of two tokens with all
of them, and drops those that the server refuses. What was dropped is stored with the results.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import msgspec

from inferoptim.config import SamplingParams
from inferoptim.errors import ConfigError, DataError, UnsupportedError
from inferoptim.targets.http_client import KINDS, Endpoint, HttpClient, TransportError
from inferoptim.targets.openai_stream import Call

Api = Literal["completions", "chat"]
PROBE_TOKENS = 2
OPTIONAL = ("include_usage", "continuous_usage", "return_token_ids", "ignore_eos")
_FIELD_OF = {
    "include_usage": "stream_options",
    "continuous_usage": "continuous_usage_stats",
    "return_token_ids": "return_token_ids",
    "ignore_eos": "ignore_eos",
}


@dataclass(frozen=True, slots=True)
class Features:
    """Which optional fields the server accepted."""

    api: Api = "completions"
    include_usage: bool = True
    continuous_usage: bool = True
    return_token_ids: bool = True
    ignore_eos: bool = True

    def as_dict(self) -> dict[str, Any]:
        """For the records."""
        return asdict(self)


class OpenAIClient:
    """One endpoint, one model. Used inside one running event loop."""

    def __init__(self, endpoint: Endpoint, *, model: str | None = None, timeout_s: float = 600.0) -> None:
        self.endpoint = endpoint
        self.http = HttpClient(endpoint, timeout_s)
        self.model = model or ""
        self.features = Features()
        self.version: str | None = None

    async def discover(self) -> None:
        """Find the model (the only one served, where none was named) and the server's version, if it says.

        Raises:
            ConfigError: the server cannot be reached, refuses the key, or serves several models.
            DataError: /v1/models is not what OpenAI's API says.
        """
        if not self.model:
            names = [str(entry.get("id", "")) for entry in await self._models()]
            if len(names) != 1:
                listed = ", ".join(names[:8]) or "none"
                raise ConfigError(
                    f"{self.endpoint.url} serves {len(names)} models ({listed}): choose one with --model"
                )
            self.model = names[0]
        status, body = await self._get("/version")
        if status == 200:
            try:
                found = msgspec.json.decode(body)
                self.version = str(found["version"])[:80] if isinstance(found, dict) else None
            except (msgspec.DecodeError, KeyError):
                self.version = None

    async def probe(self, api: Api | Literal["auto"] = "auto") -> Features:
        """Find which API and optional fields the server honours, with requests of two tokens.

        Raises:
            ConfigError: unreachable, a refused key, or an unknown model.
            UnsupportedError: neither API answers a plain request.
        """
        tried: dict[str, str] = {}
        for candidate in ("completions", "chat") if api == "auto" else (api,):
            features = Features(api=candidate)
            while True:
                asked = SamplingParams(max_tokens=PROBE_TOKENS, ignore_eos=True)
                call = await self.call(self.message("Hello", asked, features, token_ids=True))
                if call.error in KINDS:
                    raise ConfigError(
                        f"{self.endpoint.url}: {KINDS[call.error]} ({call.error}) {call.detail}".strip()
                    )
                if call.error in ("http_401", "http_403"):
                    raise ConfigError(
                        f"{self.endpoint.url} refuses the key ({call.detail}): name the variable that holds it with --api-key-env"
                    )
                if call.error is None or call.error == "empty":
                    self.features = features
                    return features
                tried[candidate] = f"{call.error} {call.detail}".strip()
                weaker = _weaker(features, call.detail) if call.error in ("http_400", "http_422") else None
                if weaker is None:
                    break
                features = weaker
        raise UnsupportedError(
            f"{self.endpoint.url} answers no plain request of model {self.model}: "
            + "; ".join(f"/v1/{'chat/' if a == 'chat' else ''}completions: {why}" for a, why in tried.items())
        )

    def message(
        self,
        prompt: str | Sequence[int],
        sampling: SamplingParams,
        features: Features | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        token_ids: bool = False,
        cache_salt: str | None = None,
    ) -> bytes:
        """The whole HTTP request of one generation, as bytes.

        Args:
            prompt: text, or token ids (completions only).
            features: what may be asked; default: what the probe found.
            messages: a conversation instead of `prompt` (chat only).
            token_ids: ask for the ids of the answer, where the server knows how.
            cache_salt: prefixes are shared only under the same salt.

        Raises:
            UnsupportedError: token ids for a chat endpoint.
        """
        chosen = features or self.features
        body: dict[str, Any] = {"model": self.model}
        if chosen.api == "chat":
            if messages is None and not isinstance(prompt, str):
                raise UnsupportedError("a chat endpoint takes text, not token ids: use --api completions")
            body["messages"] = (
                list(messages) if messages is not None else [{"role": "user", "content": prompt}]
            )
        else:
            body["prompt"] = prompt if isinstance(prompt, str) else list(prompt)
        body |= _sampling_fields(sampling)
        body["stream"] = True
        if chosen.include_usage:
            body["stream_options"] = {"include_usage": True}
            if chosen.continuous_usage:
                body["stream_options"]["continuous_usage_stats"] = True
        if chosen.return_token_ids and token_ids:
            body["return_token_ids"] = True
        if cache_salt is not None:
            body["cache_salt"] = cache_salt
        if sampling.ignore_eos and chosen.ignore_eos:
            body["ignore_eos"] = True
        path = "/v1/chat/completions" if chosen.api == "chat" else "/v1/completions"
        return self.endpoint.message("POST", path, msgspec.json.encode(body), "text/event-stream")

    async def call(self, message: bytes) -> Call:
        """Send one request and wait for its end; every failure is in the `Call`, none is raised."""
        call = Call()
        call.started_s = time.perf_counter()
        try:
            call.sent_s = await self.http.exchange(message, call)
            call.end(time.perf_counter())
        except TransportError as error:
            call.sent_s = call.sent_s or call.started_s
            call.fail(error.kind, error.detail, time.perf_counter())
        return call

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a GET.

        Raises:
            ConfigError: the server cannot be reached.
        """
        return await self._get(path)

    def close(self) -> None:
        """Drop every connection."""
        self.http.close()

    async def _models(self) -> list[dict[str, Any]]:
        status, body = await self._get("/v1/models")
        if status in (401, 403):
            raise ConfigError(
                f"{self.endpoint.url} refuses the key: name the variable that holds it with --api-key-env"
            )
        try:
            found = msgspec.json.decode(body)
            return [entry for entry in found["data"] if isinstance(entry, dict)]
        except (msgspec.DecodeError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.endpoint.url}/v1/models: HTTP {status}, not a list of models; is this an OpenAI endpoint?"
            ) from error

    async def _get(self, path: str) -> tuple[int, bytes]:
        sink = _Collect()
        try:
            await self.http.exchange(self.endpoint.message("GET", path), sink)
        except TransportError as error:
            raise ConfigError(
                f"{self.endpoint.url}{path}: {KINDS[error.kind]} ({error.kind}) {error.detail}".strip()
            ) from error
        return sink.status, bytes(sink.body)


class _Collect:
    """A sink that keeps the whole body."""

    def __init__(self) -> None:
        self.status, self.body = 0, bytearray()

    def on_head(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        self.status = status

    def on_body(self, data: bytes, now_s: float) -> None:
        self.body += data


def _weaker(features: Features, detail: str) -> Features | None:
    """Without the field that the refusal names; without the first optional one left, where it names none."""
    left = [name for name in OPTIONAL if getattr(features, name)]
    if not left:
        return None
    named = [name for name in left if _FIELD_OF[name] in detail]
    drop = named[-1] if named else left[-1]
    dropped = (
        {drop, "continuous_usage"} if drop == "include_usage" else {drop}
    )  # the second rides on the first
    return Features(
        features.api, **{name: name not in dropped and getattr(features, name) for name in OPTIONAL}
    )


def _sampling_fields(sampling: SamplingParams) -> dict[str, Any]:
    """Only what differs from the defaults, so that a strict server is not asked about fields nobody set."""
    names = {"max_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty"}
    names |= {"repetition_penalty", "seed", "stop", "stop_token_ids", "min_tokens", "logit_bias"}
    set_ = sampling.model_dump(include=names, exclude_defaults=True)
    for name in ("stop", "stop_token_ids"):
        if name in set_:
            set_[name] = list(set_[name])
    if "logit_bias" in set_:
        set_["logit_bias"] = {str(key): value for key, value in set_["logit_bias"].items()}
    return {"max_tokens": sampling.max_tokens, "temperature": sampling.temperature, **set_}
