"""The frame of a target that is another engine's `LLM` in this process: its life, and what it says of itself."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel

from inferoptim.errors import ConfigError, UnsupportedError
from inferoptim.targets.base import TargetInfo


class PeerOptions(BaseModel):
    """What every peer is told."""

    model: str


OptionsT = TypeVar("OptionsT", bound=PeerOptions)


class PeerTarget(ABC, Generic[OptionsT]):
    """See `Target` for the contract; `run` and `reset` are the engine's own.

    Args:
        options: checked.
        why_not: why its package cannot run here, or None.

    Raises:
        UnsupportedError: its package is not installed.
    """

    name: ClassVar[str]

    def __init__(self, options: OptionsT, why_not: str | None) -> None:
        if why_not is not None:
            raise UnsupportedError(why_not)
        self._options = options
        self._llm: Any = None
        self._cached_tokens = 0.0

    def load(self) -> TargetInfo:
        """Start the engine; importing its package is not part of `load_s`."""
        from inferoptim.models.hub import resolve_model

        package = self._package()
        started = time.perf_counter()
        self._llm = self._start(package, str(resolve_model(self._options.model).folder))
        return TargetInfo(
            name=self.name,
            version=str(package.__version__),
            settings={**self._options.model_dump(), "device": "cuda", **self._facts()},
            load_s=time.perf_counter() - started,
            kv_capacity_tokens=self._kv_capacity_tokens(),
        )

    @abstractmethod
    def _package(self) -> Any:
        """Import it."""

    @abstractmethod
    def _start(self, package: Any, folder: str) -> Any:
        """The package's `LLM` on the model in `folder`."""

    @abstractmethod
    def _facts(self) -> dict[str, Any]:
        """What the loaded engine adds to the settings that are stored."""

    def _kv_capacity_tokens(self) -> int | None:
        """None where it does not say."""
        return None

    def counters(self) -> dict[str, float]:
        """What its answers say: its own statistics are not asked for."""
        return {"prefix_cache_hit_tokens": self._cached_tokens}

    def logits(self, token_ids: Sequence[int]) -> Any:
        """None: it gives no whole distribution."""
        return None

    def _loaded(self) -> Any:
        if self._llm is None:
            raise ConfigError(f"{self.name}: load() comes first")
        return self._llm
