"""vLLM in this process, as a bench target: `vllm.LLM`, given token ids, answers of exact length.

Its engine is driven step by step, as `LLM.generate` does, so that requests can be sent one by one and every token has a time. vLLM as a
server is the `openai_http` target: `vllm serve FOLDER --max-model-len N`, then `inferoptim bench --endpoint vllm=http://127.0.0.1:8000`.

Written against vLLM 0.25 (its V1 engine).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal

from pydantic import ConfigDict, Field

from inferoptim.config import SamplingParams, create_validated
from inferoptim.errors import UnsupportedError
from inferoptim.targets.base import TargetRequest, TargetResponse
from inferoptim.targets.flights import Flight, drive
from inferoptim.targets.peer import PeerOptions, PeerTarget

BLOCK_TOKENS = 16  # its default on NVIDIA GPUs
# A share that is only asked to be free at the start, once the KV-cache has a size of its own.
_SHARE_WITH_BUDGET = 0.1


def why_not() -> str | None:
    """Why this target cannot run here, in one line; None when its package is installed."""
    if find_spec("vllm") is not None:
        return None
    return "target vllm needs the package vllm, in the environment that runs the bench: pip install vllm"


class VllmOptions(PeerOptions):
    """What vLLM may be told, in this project's words; `args` takes anything else that `vllm.LLM` knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: str = Field("none", description="'fp8' = quantised at load; 'none' = as the checkpoint is.")
    kv_quantization: Literal["none", "fp8"] = "none"
    max_model_len: int | None = None
    max_num_seqs: int = Field(256, ge=1)
    max_num_batched_tokens: int | None = Field(None, ge=1, description="Default: vLLM's own.")
    kv_budget_bytes: int | None = Field(
        None, ge=1, description="KV memory, the same as the engine's; default: 90 % of the card."
    )
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1)
    prefix_caching: bool = True
    enforce_eager: bool = Field(False, description="No compilation and no CUDA graphs.")
    tensor_parallel: int = Field(1, ge=1)
    stream: bool = Field(True, description="Time of every token; False: of the last alone, as LLM.generate.")
    args: dict[str, Any] = Field(default_factory=dict, description="Further arguments of vllm.LLM.")


class VllmTarget(PeerTarget[VllmOptions]):
    """`vllm.LLM`; see `Target` for the contract.

    Args:
        settings: fields of `VllmOptions`.

    Raises:
        UnsupportedError: vLLM is not installed.
        ConfigError: an unknown option.
    """

    name = "vllm"

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(create_validated(VllmOptions, dict(settings), self.name), why_not())

    def _package(self) -> Any:
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # a benchmark tells nobody
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        import vllm

        return vllm

    def _start(self, package: Any, folder: str) -> Any:
        return package.LLM(**engine_arguments(self._options, folder))

    def _facts(self) -> dict[str, Any]:
        dtype = self._loaded().llm_engine.vllm_config.model_config.dtype
        return {"dtype": str(dtype).removeprefix("torch."), "prefix_cache_reset": "reset_prefix_cache"}

    def _kv_capacity_tokens(self) -> int | None:
        cache = self._loaded().llm_engine.vllm_config.cache_config
        return cache.num_gpu_blocks * cache.block_size if cache.num_gpu_blocks else None

    def run(
        self, requests: Sequence[TargetRequest], *, concurrency: int | None = None
    ) -> list[TargetResponse]:
        engine, stream = self._loaded().llm_engine, self._options.stream
        asked = {r.request_id: sampling_arguments(r.sampling) for r in requests}

        def add(request: TargetRequest, now: float) -> str | None:
            params = _sampling(asked[request.request_id], stream)
            prompt = {"prompt_token_ids": list(request.prompt_token_ids)}
            try:
                engine.add_request(request.request_id, prompt, params)
            except ValueError as error:  # what vLLM says of a request that it cannot take
                return " ".join(str(error).split())
            return None

        def step(flights: Mapping[str, Flight]) -> int:
            ended = 0
            outputs = engine.step()
            at = time.perf_counter()
            for output in outputs:
                flight = flights[output.request_id]
                flight.take(output.outputs[0].token_ids, at)
                flight.cached = output.num_cached_tokens or flight.cached
                if output.finished:
                    flight.finished_s = at
                    self._cached_tokens += flight.cached
                    ended += 1
            return ended

        flights = drive(requests, concurrency, add, step)
        return [flights[r.request_id].response(r, streamed=stream) for r in requests]

    def reset(self) -> None:
        """Empty the prefix cache."""
        self._loaded().reset_prefix_cache()

    def close(self) -> None:
        self._llm = None


def engine_arguments(options: VllmOptions, folder: str) -> dict[str, Any]:
    """Arguments of `vllm.LLM`, for equal work: token ids in and out, no tokenizer, the same KV memory.

    Args:
        folder: the model's.
    """
    arguments: dict[str, Any] = {
        "model": folder,
        "skip_tokenizer_init": True,
        "dtype": options.dtype,
        "quantization": None if options.quantization == "none" else options.quantization,
        "kv_cache_dtype": "auto" if options.kv_quantization == "none" else options.kv_quantization,
        "max_num_seqs": options.max_num_seqs,
        "enable_prefix_caching": options.prefix_caching,
        "enforce_eager": options.enforce_eager,
        "tensor_parallel_size": options.tensor_parallel,
        "seed": 0,
    }
    if options.max_model_len is not None:
        arguments["max_model_len"] = options.max_model_len
    if options.max_num_batched_tokens is not None:
        arguments["max_num_batched_tokens"] = options.max_num_batched_tokens
    if options.kv_budget_bytes is not None:
        arguments["kv_cache_memory_bytes"] = options.kv_budget_bytes + _own_block_bytes(options, folder)
        arguments["gpu_memory_utilization"] = options.gpu_memory_utilization or _SHARE_WITH_BUDGET
    elif options.gpu_memory_utilization is not None:
        arguments["gpu_memory_utilization"] = options.gpu_memory_utilization
    return {**arguments, **options.args}


def sampling_arguments(sampling: SamplingParams) -> dict[str, Any]:
    """Arguments of `vllm.SamplingParams` for a request.

    Raises:
        UnsupportedError: something that needs vLLM's tokenizer, which is not loaded.
    """
    if sampling.stop or sampling.grammar is not None:
        raise UnsupportedError("the vllm target works on token ids: no stop strings and no grammars")
    return {
        "max_tokens": sampling.max_tokens,
        "min_tokens": sampling.min_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "logit_bias": sampling.logit_bias or None,
        "seed": sampling.seed,
        "stop_token_ids": list(sampling.stop_token_ids) or None,
        "ignore_eos": sampling.ignore_eos,
        "detokenize": False,
    }


def _sampling(arguments: Mapping[str, Any], stream: bool) -> Any:
    from vllm import SamplingParams as VllmSampling
    from vllm.sampling_params import RequestOutputKind

    kind = RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY
    return VllmSampling(**arguments, output_kind=kind)


def _own_block_bytes(options: VllmOptions, folder: str) -> int:
    """vLLM keeps one block for itself: it comes on top, so that the requests have as much as elsewhere."""
    from pathlib import Path

    from inferoptim.models.load import read_spec

    spec = read_spec(Path(folder))
    element = 4 if "float32" in (options.dtype, spec.torch_dtype) else 2
    return int(BLOCK_TOKENS * spec.kv_bytes_per_token(element))
