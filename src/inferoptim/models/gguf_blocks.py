"""The 4- and 8-bit blocks of a GGUF file, kept beside the dense model that was made of them.

Dense values in bfloat16 no longer tell their blocks exactly, so a conversion writes the blocks too: ``quantization=int4``
computes with the very numbers that the file's author published. The file is a safetensors file of bytes, one tensor a
weight under its Hugging Face name ([N, bytes of a row]), with its ggml type in the metadata.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from safetensors import SafetensorError, safe_open

from inferoptim.errors import DataError
from inferoptim.models.sources import BLOCKS_NAME
from inferoptim.quant.formats import GroupedWeight
from inferoptim.quant.groups import BLOCKS, from_blocks

Array: TypeAlias = "np.ndarray[Any, Any]"


def wanted(kinds: Mapping[str, str]) -> dict[str, str]:
    """Of tensor name → ggml type: what is kept as blocks. Nothing where no weight has 4 bits."""
    kept = {name: kind for name, kind in kinds.items() if kind in BLOCKS}
    return kept if any(BLOCKS[kind][1] == 4 for kind in kept.values()) else {}


def write_blocks(
    path: Path,
    rows: Mapping[str, Callable[[], Array]],
    sizes: Mapping[str, tuple[int, int]],
    kinds: Mapping[str, str],
) -> None:
    """Write the file, one tensor in memory at a time.

    Args:
        rows: name → a function that gives its blocks, uint8 [N, bytes of a row].
        sizes: name → that shape.
        kinds: name → ggml type.
    """
    header: dict[str, Any] = {"__metadata__": dict(kinds)}
    at = 0
    for name in rows:
        size = sizes[name][0] * sizes[name][1]
        header[name] = {"dtype": "U8", "shape": list(sizes[name]), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, make in rows.items():
            content = make()
            assert (content.shape, content.dtype) == (sizes[name], np.uint8), name
            file.write(np.ascontiguousarray(content).data)


def open_blocks(folder: Path, stack: ExitStack) -> Callable[[str], GroupedWeight | None]:
    """A function from a weight's name to its blocks, or to None where the folder has none of it.

    Raises:
        DataError: the file is damaged.
    """
    path = folder / BLOCKS_NAME
    if not path.is_file():
        return lambda name: None
    try:
        file = stack.enter_context(safe_open(path, framework="pt", device="cpu"))
        kinds: dict[str, str] = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: truncated or damaged safetensors file ({error})") from error
    if odd := next((kind for kind in kinds.values() if kind not in BLOCKS), None):
        raise DataError(f"{path}: blocks of type {odd!r} are not known; fetch the model again")

    def read(name: str) -> GroupedWeight | None:
        return from_blocks(file.get_tensor(name), kinds[name]) if name in kinds else None

    return read
