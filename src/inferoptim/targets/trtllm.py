"""TensorRT-LLM in this process, as a bench target: `tensorrt_llm.LLM` (its PyTorch backend), token ids in and out.

**Never run by this project**: no machine with TensorRT-LLM was at hand. It is written from TensorRT-LLM's own reference of its LLM API
(1.x: `LLM`, `SamplingParams`, `llmapi.KvCacheConfig`, `generate_async`), and what can be checked without the package is checked against a
stand-in (`tests/unit/test_peer_targets.py`). As a server it is the `openai_http` target: `trtllm-serve FOLDER`, then
`inferoptim bench --endpoint trtllm=http://127.0.0.1:8000`.

Source: https://nvidia.github.io/TensorRT-LLM/llm-api/reference.html
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal

from pydantic import ConfigDict, Field

from inferoptim.config import SamplingParams, create_validated
from inferoptim.errors import UnsupportedError
from inferoptim.targets.base import TargetRequest, TargetResponse
from inferoptim.targets.flights import Flight
from inferoptim.targets.peer import PeerOptions, PeerTarget


def why_not() -> str | None:
    """Why this target cannot run here, in one line; None when its package is installed."""
    if find_spec("tensorrt_llm") is not None:
        return None
    return (
        "target trtllm needs the package tensorrt_llm and an NVIDIA GPU: pip install tensorrt-llm "
        "(or run the bench in NVIDIA's tensorrt-llm container)"
    )


class TrtllmOptions(PeerOptions):
    """What TensorRT-LLM may be told, in this project's words; `args` takes anything else that its `LLM` knows.

    It loads quantised checkpoints as they are (`inferoptim build --export modelopt`); it does not quantise at load.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Literal["auto", "bfloat16", "float16"] = "auto"
    kv_quantization: Literal["none", "fp8"] = "none"
    max_model_len: int | None = None
    max_num_seqs: int = Field(256, ge=1)
    max_num_batched_tokens: int | None = Field(None, ge=1, description="Default: TensorRT-LLM's own.")
    kv_budget_bytes: int | None = Field(None, ge=1, description="KV memory, the same as the engine's.")
    prefix_caching: bool = Field(
        False, description="Its block reuse; off, since it cannot be emptied between two runs."
    )
    tensor_parallel: int = Field(1, ge=1)
    args: dict[str, Any] = Field(default_factory=dict, description="Further arguments of tensorrt_llm.LLM.")


class TrtllmTarget(PeerTarget[TrtllmOptions]):
    """`tensorrt_llm.LLM`; see `Target` for the contract.

    Args:
        settings: fields of `TrtllmOptions`.

    Raises:
        UnsupportedError: TensorRT-LLM is not installed.
        ConfigError: an unknown option.
    """

    name = "trtllm"

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(create_validated(TrtllmOptions, dict(settings), self.name), why_not())

    def _package(self) -> Any:
        import tensorrt_llm

        return tensorrt_llm

    def _start(self, package: Any, folder: str) -> Any:
        arguments, cache = engine_arguments(self._options, folder)
        return package.LLM(
            **arguments, kv_cache_config=package.llmapi.KvCacheConfig(**cache), **self._options.args
        )

    def _facts(self) -> dict[str, Any]:
        kept = self._options.prefix_caching
        return {"prefix_cache_reset": "not possible: repeated prompts may hit" if kept else "no prefix cache"}

    def run(
        self, requests: Sequence[TargetRequest], *, concurrency: int | None = None
    ) -> list[TargetResponse]:
        llm = self._loaded()
        asked = [sampling_arguments(request.sampling) for request in requests]
        flights = asyncio.run(_serve_all(llm, requests, asked, concurrency))
        self._cached_tokens += sum(flight.cached for flight in flights)
        return [f.response(r) for f, r in zip(flights, requests, strict=True)]

    def reset(self) -> None:
        """Nothing to forget while block reuse is off; with it on nothing can be done (see `settings`)."""

    def close(self) -> None:
        if self._llm is not None:
            self._llm.shutdown()
            self._llm = None


def engine_arguments(options: TrtllmOptions, folder: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of `tensorrt_llm.LLM`, and of its `KvCacheConfig`.

    Args:
        folder: the model's.
    """
    arguments: dict[str, Any] = {
        "model": folder,
        "skip_tokenizer_init": True,
        "dtype": options.dtype,
        "tensor_parallel_size": options.tensor_parallel,
        "max_batch_size": options.max_num_seqs,
    }
    if options.max_model_len is not None:
        arguments["max_seq_len"] = options.max_model_len
    if options.max_num_batched_tokens is not None:
        arguments["max_num_tokens"] = options.max_num_batched_tokens
    cache: dict[str, Any] = {"enable_block_reuse": options.prefix_caching}
    if options.kv_quantization != "none":
        cache["dtype"] = options.kv_quantization
    if options.kv_budget_bytes is not None:
        cache["max_gpu_total_bytes"] = options.kv_budget_bytes
    return arguments, cache


def sampling_arguments(sampling: SamplingParams) -> dict[str, Any]:
    """Arguments of `tensorrt_llm.SamplingParams` for a request.

    Raises:
        UnsupportedError: something that this target does not hand over.
    """
    if sampling.stop or sampling.grammar is not None or sampling.logit_bias:
        raise UnsupportedError(
            "the trtllm target works on token ids: no stop strings, grammars or logit_bias"
        )
    arguments: dict[str, Any] = {
        "max_tokens": sampling.max_tokens,
        "ignore_eos": sampling.ignore_eos,
        "detokenize": False,
        "end_id": -1,  # no tokenizer, so no end of sequence is known; the length ends an answer
    }
    if sampling.min_tokens:
        arguments["min_tokens"] = sampling.min_tokens
    if sampling.stop_token_ids:
        arguments["stop_token_ids"] = list(sampling.stop_token_ids)
    if sampling.greedy:
        return {**arguments, "top_k": 1}
    chosen = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "seed": sampling.seed,
    }
    return {**arguments, **{name: value for name, value in chosen.items() if value}}


async def _serve_all(
    llm: Any,
    requests: Sequence[TargetRequest],
    asked: Sequence[Mapping[str, Any]],
    concurrency: int | None,
) -> list[Flight]:
    flights = [Flight(0.0) for _ in requests]
    order = sorted(range(len(requests)), key=lambda i: requests[i].arrival_offset_s)
    start = time.perf_counter()

    async def one(index: int) -> None:
        flight = flights[index]
        flight.sent_s = time.perf_counter()
        try:
            await _serve(llm, requests[index], asked[index], flight)
        except (ValueError, RuntimeError) as error:  # RequestError of its executor is a RuntimeError
            flight.error = " ".join(str(error).split()) or type(error).__name__

    async def at_its_time(index: int) -> None:
        while (delay := start + requests[index].arrival_offset_s - time.perf_counter()) > 0:
            await asyncio.sleep(delay)
        await one(index)

    async def worker(indices: Any) -> None:
        for index in indices:
            await one(index)

    if concurrency is None:
        await asyncio.gather(*(at_its_time(i) for i in order))
    else:
        waiting = iter(order)
        await asyncio.gather(*(worker(waiting) for _ in range(concurrency)))
    return flights


async def _serve(llm: Any, request: TargetRequest, arguments: Mapping[str, Any], flight: Flight) -> None:
    from tensorrt_llm import SamplingParams as TrtllmSampling

    answer = llm.generate_async(
        list(request.prompt_token_ids), sampling_params=TrtllmSampling(**arguments), streaming=True
    )
    async for output in answer:
        flight.take(output.outputs[0].token_ids_diff, time.perf_counter())
        flight.cached = int(getattr(output, "cached_tokens", 0) or 0)
    flight.finished_s = time.perf_counter()
