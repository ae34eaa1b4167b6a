"""The project's own engine as a bench target: token ids in, token ids and their times out, no server between."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from inferoptim.config import EngineConfig
from inferoptim.engine.core import EngineCore
from inferoptim.engine.request import FinishReason, Request
from inferoptim.errors import CapacityError, RequestError
from inferoptim.targets.base import TargetInfo, TargetRequest, TargetResponse
from inferoptim.targets.flights import Flight, drive


class EngineTarget:
    """`EngineCore` driven in this thread; see `Target` for the contract.

    Args:
        settings: fields of `EngineConfig`.

    Raises:
        ConfigError: an unknown or contradictory field.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._config = EngineConfig.create(**settings)
        self._core: EngineCore | None = None

    @property
    def core(self) -> EngineCore:
        """The loaded engine."""
        assert self._core is not None, "load() comes first"
        return self._core

    def load(self) -> TargetInfo:
        self._core = EngineCore(self._config)
        info = self._core.info()
        return TargetInfo(
            name="engine",
            version=str(info["version"]),
            settings=info,
            load_s=info["load_s"],
            weight_bytes=info["weight_bytes"],
            kv_capacity_bytes=info["kv_capacity_bytes"],
            kv_capacity_tokens=info["kv_capacity_tokens"],
        )

    def run(
        self, requests: Sequence[TargetRequest], *, concurrency: int | None = None
    ) -> list[TargetResponse]:
        core = self.core
        eos = frozenset(core.spec.eos_token_ids)

        def add(request: TargetRequest, now: float) -> str | None:
            try:
                core.add(Request(request.request_id, request.prompt_token_ids, request.sampling, now, eos))
            except (RequestError, CapacityError) as error:
                return str(error)
            return None

        def step(flights: Mapping[str, Flight]) -> int:
            ended = 0
            outputs = core.step()
            at = time.perf_counter()
            for output in outputs:
                flight = flights[output.request_id]
                flight.take(output.token_ids, at)
                flight.cached = output.num_cached_tokens
                if output.finish_reason is not None:
                    ended += 1
                    if output.finish_reason is FinishReason.ERROR:
                        flight.error = "the engine gave the request up: it can never fit the KV-cache"
            return ended

        flights = drive(requests, concurrency, add, step)
        return [flights[request.request_id].response(request) for request in requests]

    def reset(self) -> None:
        self.core.reset_prefix_cache()

    def counters(self) -> dict[str, float]:
        return self.core.counters()

    def kv_usage(self) -> Mapping[str, int]:
        """Tokens live and held now, and the sequences; see `KVMeter`."""
        return self.core.kv_usage()

    def logits(self, token_ids: Sequence[int]) -> Any:
        return self.core.logits(token_ids)

    def close(self) -> None:
        self._core = None
