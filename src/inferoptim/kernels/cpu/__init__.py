"""Native CPU kernels: a whole decoder step in one call, compiled at first use for this machine's processor."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from inferoptim.errors import UnsupportedError


@dataclass(frozen=True)
class _State:
    library: ctypes.CDLL | None
    path: Path | None
    why_not: str | None


@cache
def _state() -> _State:
    from inferoptim.kernels.cpu import build, native

    try:
        library, path = build.load()
    except UnsupportedError as error:
        return _State(None, None, str(error))
    return _State(native.declare(library), path, None)


def available() -> bool:
    """True when the kernels are compiled and loaded; the first call compiles them if need be."""
    return _state().library is not None


def why_not() -> str | None:
    """What stood in the way, in one line; None when they are available."""
    return _state().why_not


def library() -> ctypes.CDLL:
    """The loaded library.

    Raises:
        UnsupportedError: not available; see `why_not`.
    """
    state = _state()
    if state.library is None:
        raise UnsupportedError(f"native CPU kernels: {state.why_not}")
    return state.library


def isa() -> str | None:
    """Instruction set that the loaded kernels use ('avx512-vnni-bf16', 'avx512-vnni', 'avx2', 'portable'), or None."""
    state = _state()
    return None if state.library is None else state.library.io_isa().decode()


def describe() -> dict[str, str]:
    """For `doctor` and a run's environment: what runs, or why nothing does."""
    state = _state()
    if state.library is None:
        return {"native step": "no", "reason": state.why_not or "", "fallback": "torch operators"}
    weights = "float32, bfloat16, int8, int4"
    return {
        "native step": "yes",
        "instruction set": isa() or "",
        "weights": weights,
        "library": str(state.path),
    }
