"""What `compare` sets side by side: a model or artefact in this process, or a live OpenAI endpoint."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from inferoptim.build.tasks import Task, likeliest, matches
from inferoptim.config import EngineConfig, SamplingParams
from inferoptim.engine.llm import LLM
from inferoptim.engine.loading import choose_device
from inferoptim.errors import UnsupportedError
from inferoptim.models.artefact import engine_fields
from inferoptim.models.hub import resolve_model
from inferoptim.models.load import has_fp8, read_scheme

Array = NDArray[np.float64]
_log = logging.getLogger(__name__)
_ANSWER_TOKENS = 48


class Side(Protocol):
    """One of the two. `close` before the other one loads keeps memory to one model at a time."""

    name: str

    def text_logprobs(self, text: str) -> list[float]:
        """Log-probability of each token of a text but the first."""
        ...

    def answer_right(self, task: Task) -> bool: ...

    def time_run(self, prompts: Sequence[str], output_tokens: int) -> tuple[int, float]:
        """(output tokens, seconds) of one pass over the prompts, all sent at once."""
        ...

    def close(self) -> None: ...


def not_as_on_a_gpu(name: str) -> str | None:
    """A line where what is compared here is not what a GPU with FP8 products computes; None elsewhere."""
    if name.startswith(("http://", "https://")):
        return None
    scheme = read_scheme(resolve_model(name).folder)
    if scheme is None or not scheme.float8 or has_fp8(choose_device(EngineConfig.create())):
        return None
    return (
        f"{name}: this machine multiplies its FP8 weights with unrounded inputs, in every figure here; a GPU rounds the inputs, too "
        "(what that costs is in the artefact's own proof: inferoptim inspect)"
    )


class LocalSide:
    """A model name, folder, .gguf or artefact; an artefact is run with the settings that it carries."""

    def __init__(self, name: str) -> None:
        self.name = name
        folder = Path(name).expanduser()
        settings, warning = engine_fields(folder)
        if warning:
            _log.warning(warning)
        settings.pop("max_model_len", None)  # the texts of the comparison may be longer than what is served
        if not torch.cuda.is_available() and settings.get("kv_quantization") == "fp8":
            settings.pop("kv_quantization")
        self.settings = settings
        self._llm: LLM | None = LLM(EngineConfig.create(model=name, **settings))

    @property
    def llm(self) -> LLM:
        assert self._llm is not None, "closed"
        return self._llm

    def text_logprobs(self, text: str) -> list[float]:
        """See `Side`."""
        return self._logprobs(self.llm.tokenizer.encode(text))

    def _logprobs(self, ids: list[int]) -> list[float]:
        sampling = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        output = self.llm.generate([ids], sampling)[0]
        return [p.logprob for p in output.prompt_logprobs or []]

    def answer_right(self, task: Task) -> bool:
        """See `Side`."""
        encode = self.llm.tokenizer.encode
        if task.regex is not None:
            sampling = SamplingParams(max_tokens=_ANSWER_TOKENS, temperature=0.0)
            return matches(task, self.llm.generate(task.prompt, sampling).text)
        prompt = encode(task.prompt)
        continuations = [encode(choice, add_special_tokens=False) for choice in task.choices]
        sums = [sum(self._logprobs(prompt + ids)[-len(ids) :]) for ids in continuations]
        return likeliest(sums, [len(ids) for ids in continuations]) == task.answer

    def time_run(self, prompts: Sequence[str], output_tokens: int) -> tuple[int, float]:
        """See `Side`."""
        self.llm.core.reset_prefix_cache()
        sampling = SamplingParams(max_tokens=output_tokens, temperature=0.0, ignore_eos=True)
        room = (self.llm.config.max_model_len or self.llm.core.spec.max_position) - output_tokens
        ids = [self.llm.tokenizer.encode(prompt)[:room] for prompt in prompts]
        started = time.perf_counter()
        outputs = self.llm.generate(ids, sampling)
        return sum(len(o.token_ids) for o in outputs), time.perf_counter() - started

    def close(self) -> None:
        """Free the model."""
        self._llm = None


class EndpointSide:
    """An OpenAI endpoint; distributions cannot be had there, so KL and agreement are not measured.

    Args:
        url: base URL, with or without ``/v1``.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        import httpx

        self.name = url
        base = url.rstrip("/")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.Client(
            base_url=base if base.endswith("/v1") else f"{base}/v1", headers=headers, timeout=120
        )
        models = self._request("GET", "/models")["data"]
        if not models:
            raise UnsupportedError(f"{url}: the endpoint lists no model")
        self._model = str(models[0]["id"])

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        import httpx

        try:
            response = self._client.request(method, path, json=body)
            response.raise_for_status()
            content: dict[str, Any] = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise UnsupportedError(f"{self.name}{path}: {str(error).splitlines()[0]}") from error
        return content

    def _echo(self, text: str) -> tuple[list[float], list[int]]:
        """(log-probabilities of the text's tokens but the first, character offsets of those tokens)."""
        body = {
            "model": self._model, "prompt": text, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1,
        }  # fmt: skip
        choice = self._request("POST", "/completions", body)["choices"][0]
        logprobs = choice.get("logprobs") or {}
        values, offsets = logprobs.get("token_logprobs"), logprobs.get("text_offset")
        if not values or not offsets:
            raise UnsupportedError(
                f"{self.name}: gives no log-probabilities of a prompt (echo with logprobs)"
            )
        pairs = [(v, o) for v, o in zip(values[:-1], offsets[:-1], strict=True) if v is not None]
        return [v for v, _ in pairs], [o for _, o in pairs]

    def text_logprobs(self, text: str) -> list[float]:
        """See `Side`."""
        return self._echo(text)[0]

    def answer_right(self, task: Task) -> bool:
        """See `Side`."""
        if task.regex is not None:
            body = {
                "model": self._model,
                "prompt": task.prompt,
                "max_tokens": _ANSWER_TOKENS,
                "temperature": 0,
            }
            return matches(task, self._request("POST", "/completions", body)["choices"][0]["text"])
        sums, lengths = [], []
        for choice in task.choices:
            values, offsets = self._echo(task.prompt + choice)
            inside = [v for v, o in zip(values, offsets, strict=True) if o >= len(task.prompt)]
            sums.append(sum(inside) if inside else -math.inf)
            lengths.append(max(len(inside), 1))
        return likeliest(sums, lengths) == task.answer

    def time_run(self, prompts: Sequence[str], output_tokens: int) -> tuple[int, float]:
        """See `Side`."""
        from concurrent.futures import ThreadPoolExecutor

        def one(prompt: str) -> int:
            body = {"model": self._model, "prompt": prompt, "max_tokens": output_tokens, "temperature": 0}
            return int(self._request("POST", "/completions", body)["usage"]["completion_tokens"])

        started = time.perf_counter()
        with ThreadPoolExecutor(len(prompts)) as pool:
            tokens = sum(pool.map(one, prompts))
        return tokens, time.perf_counter() - started

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def open_side(name: str, api_key: str | None = None) -> Side:
    """A side from what the user wrote: a URL is an endpoint, everything else a model."""
    return EndpointSide(name, api_key) if name.startswith(("http://", "https://")) else LocalSide(name)
