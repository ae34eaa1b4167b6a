"""The baseline: Hugging Face Transformers' `generate`, one request at a time or in static batches.

Static batching is what the guide calls traditional: prompts padded to the longest on the left, one batch at a time,
every row decoded until the longest answer is done. A streamer notes when each token was there, so that the baseline
has a time to first token like everyone else; a row's answer counts as finished at its own last token.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict

from inferoptim.config import create_validated
from inferoptim.errors import UnsupportedError
from inferoptim.hardware import cpu_facts
from inferoptim.models.hub import resolve_model
from inferoptim.targets.base import TargetInfo, TargetRequest, TargetResponse

_BF16_CPU = ("avx512_bf16", "amx_bf16", "bf16")


class TransformersOptions(BaseModel):
    """What the baseline may be told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    device: Literal["cpu", "cuda"] = "cpu"
    num_threads: int | None = None
    batching: Literal["sequential", "static"] = "static"
    max_batch_size: int = 32  # of an open loop; a closed loop states its own concurrency
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    static_cache: bool = False  # on a GPU `generate` then compiles the model's decoding
    max_cache_len: int | None = (
        None  # tokens that a static cache holds, so that it is made, and compiled for, once
    )


class TransformersTarget:
    """`AutoModelForCausalLM.generate`; see `Target` for the contract.

    Args:
        settings: fields of `TransformersOptions`.

    Raises:
        ConfigError: an unknown option.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._options = create_validated(TransformersOptions, dict(settings), "transformers")
        self._model: Any = None
        self._caches: dict[int, tuple[Any, int]] = {}  # static caches and their lengths, by rows

    def load(self) -> TargetInfo:
        import transformers
        from transformers import AutoModelForCausalLM

        transformers.utils.logging.disable_progress_bar()
        started = time.perf_counter()
        options = self._options
        if options.num_threads and options.device == "cpu":
            torch.set_num_threads(options.num_threads)
        files = resolve_model(options.model)
        model = AutoModelForCausalLM.from_pretrained(files.folder, dtype=self._dtype(), local_files_only=True)
        self._model = model.to(options.device).eval()
        weights = {p.data_ptr(): p.numel() * p.element_size() for p in self._model.parameters()}
        return TargetInfo(
            name="transformers",
            version=transformers.__version__,
            settings={**options.model_dump(), "dtype": str(self._model.dtype).removeprefix("torch.")},
            load_s=time.perf_counter() - started,
            weight_bytes=sum(weights.values()),
        )

    def run(
        self, requests: Sequence[TargetRequest], *, concurrency: int | None = None
    ) -> list[TargetResponse]:
        if any(not request.sampling.greedy for request in requests):
            raise UnsupportedError("the transformers target decodes greedily only: set temperature to 0")
        size = 1 if self._options.batching == "sequential" else (concurrency or self._options.max_batch_size)
        waiting = sorted(requests, key=lambda r: r.arrival_offset_s)
        responses: dict[str, TargetResponse] = {}
        started = time.perf_counter()
        while waiting:
            now = time.perf_counter() - started
            due = len(waiting) if concurrency is not None else sum(r.arrival_offset_s <= now for r in waiting)
            if due == 0:
                time.sleep(max(0.0, waiting[0].arrival_offset_s - now))
                continue
            batch, waiting = waiting[: min(due, size)], waiting[min(due, size) :]
            for response in self._generate(batch):
                responses[response.request_id] = response
        return [responses[request.request_id] for request in requests]

    def reset(self) -> None:
        """Nothing is kept between two calls of `generate`."""

    def counters(self) -> dict[str, float]:
        return {}

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int]) -> Any:
        ids = torch.tensor([list(token_ids)], device=self._model.device)
        return self._model(ids, use_cache=False).logits[0].float().cpu().numpy()

    def close(self) -> None:
        self._model = None
        self._caches.clear()

    @torch.inference_mode()
    def _generate(self, batch: Sequence[TargetRequest]) -> list[TargetResponse]:
        sent_s = time.perf_counter()
        longest = max(len(r.prompt_token_ids) for r in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, request in enumerate(batch):
            ids[row, longest - len(request.prompt_token_ids) :] = torch.tensor(request.prompt_token_ids)
            mask[row, longest - len(request.prompt_token_ids) :] = 1
        new_tokens = max(r.sampling.max_tokens for r in batch)
        clock = _Clock()
        out = self._model.generate(
            ids.to(self._model.device),
            attention_mask=mask.to(self._model.device),
            max_new_tokens=new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=None,  # exact lengths: the end of sequence is ignored
            pad_token_id=0,
            streamer=clock,
            **self._cache(len(batch), longest + new_tokens),
        )
        tokens = out[:, longest:].tolist()
        responses = []
        for row, request in enumerate(batch):
            count = request.sampling.max_tokens
            times = tuple(clock.times_s[:count])
            responses.append(
                TargetResponse(
                    request_id=request.request_id,
                    token_ids=tuple(tokens[row][:count]),
                    sent_s=sent_s,
                    token_times_s=times,
                    finished_s=times[-1],
                )
            )
        return responses

    def _cache(self, rows: int, tokens: int) -> dict[str, Any]:
        """The argument of `generate` that names its cache; one static cache a batch size, emptied before each use."""
        if not self._options.static_cache:
            return {}
        from transformers import StaticCache

        cache, length = self._caches.get(rows, (None, 0))
        if length < tokens:
            length = max(tokens, self._options.max_cache_len or 0)
            cache = StaticCache(config=self._model.config, max_cache_len=length)
            self._caches[rows] = (cache, length)
        else:
            cache.reset()
        return {"past_key_values": cache}

    def _dtype(self) -> torch.dtype | str:
        """auto: bfloat16 where the device computes in it, else float32 on a CPU and the checkpoint's type on a GPU."""
        if self._options.dtype != "auto":
            return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[
                self._options.dtype
            ]
        if self._options.device == "cuda":
            return "auto"
        has_bf16 = any(name in cpu_facts().isa for name in _BF16_CPU)
        return torch.bfloat16 if has_bf16 else torch.float32


class _Clock:
    """A streamer that only notes when each step's tokens reached the host."""

    def __init__(self) -> None:
        self.times_s: list[float] = []
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if self._prompt_seen:
            self.times_s.append(time.perf_counter())
        self._prompt_seen = True  # the first call brings the prompt

    def end(self) -> None:
        """Called once after the last token."""
