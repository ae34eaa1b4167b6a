"""Measure what each LLM inference lever gains on your model, traffic and machine; price it; serve the winner.

The public names load on first use, so that ``import inferoptim`` costs milliseconds:

>>> from inferoptim import LLM, SamplingParams
>>> LLM("smollm2-135m").generate(["Bonjour"], SamplingParams(max_tokens=16))  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from inferoptim.config import EngineConfig, SamplingParams
    from inferoptim.engine.async_core import AsyncLLM
    from inferoptim.engine.llm import LLM, RequestOutput

_HOMES = {
    "LLM": "inferoptim.engine.llm",
    "RequestOutput": "inferoptim.engine.llm",
    "AsyncLLM": "inferoptim.engine.async_core",
    "EngineConfig": "inferoptim.config",
    "SamplingParams": "inferoptim.config",
}

__all__ = ["LLM", "AsyncLLM", "EngineConfig", "RequestOutput", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'inferoptim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
