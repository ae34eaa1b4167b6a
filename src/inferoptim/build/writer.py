"""Safetensors written as the layers come: each tensor goes to disk at once, shards are closed at a bounded size.

Source: the safetensors format: 8 bytes of header length, a JSON header (name → type, shape, place), the data.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

_SHARD_BYTES = 4 << 30
_TYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int8: "I8",
    torch.int32: "I32",
    torch.int64: "I64",
}


class ShardWriter:
    """Takes tensors one by one and holds none of them; the caller publishes the folder or throws it away.

    The order of the tensors is the order of `add`, so equal builds give equal bytes.
    """

    def __init__(self, folder: Path, shard_bytes: int = _SHARD_BYTES) -> None:
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._shards: list[dict[str, Any]] = [{}]
        self._at = 0  # end of the open shard's data
        self.total_bytes = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Append a tensor to the open shard, or to a new one where it would not fit."""
        if self._at and self._at + tensor.nbytes > self._shard_bytes:
            self._shards.append({})
            self._at = 0
        self._shards[-1][name] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [self._at, self._at + tensor.nbytes],
        }
        with self._data(len(self._shards) - 1).open("ab") as file:
            tensor.contiguous().flatten().view(torch.uint8).numpy().tofile(file)
        self._at += tensor.nbytes
        self.total_bytes += tensor.nbytes

    def close(self) -> list[str]:
        """Put the headers before the data, write the index if there are several shards; returns the file names."""
        count = len(self._shards)
        names: list[str] = []
        weight_map: dict[str, str] = {}
        for i, tensors in enumerate(self._shards):
            name = "model.safetensors" if count == 1 else f"model-{i + 1:05d}-of-{count:05d}.safetensors"
            header = json.dumps({"__metadata__": {"format": "pt"}, **tensors}, separators=(",", ":")).encode()
            header += b" " * (-len(header) % 8)  # the data starts at a multiple of 8
            with (self._folder / name).open("wb") as file, self._data(i).open("rb") as data:
                file.write(len(header).to_bytes(8, "little") + header)
                shutil.copyfileobj(data, file, 1 << 20)
            self._data(i).unlink()
            names.append(name)
            weight_map |= dict.fromkeys(tensors, name)
        if count == 1:
            return names
        index = {"metadata": {"total_size": self.total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        index_name = "model.safetensors.index.json"
        (self._folder / index_name).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        return [*names, index_name]

    def _data(self, shard: int) -> Path:
        return self._folder / f"part-{shard:05d}"
