"""Safetensors written as the layers come: shards of bounded size, named and indexed once their number is known."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

_SHARD_BYTES = 256 << 20


class ShardWriter:
    """Collects tensors and writes them in shards to a folder that the caller publishes or throws away.

    At most one shard is held in memory. The order of the tensors is the order of `add`, so equal builds give equal bytes.
    """

    def __init__(self, folder: Path, shard_bytes: int = _SHARD_BYTES) -> None:
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._held: dict[str, torch.Tensor] = {}
        self._held_bytes = 0
        self._shards: list[list[str]] = []
        self.total_bytes = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take a tensor; it must not be changed afterwards."""
        if self._held and self._held_bytes + tensor.nbytes > self._shard_bytes:
            self._flush()
        self._held[name] = tensor.contiguous()
        self._held_bytes += tensor.nbytes
        self.total_bytes += tensor.nbytes

    def close(self) -> list[str]:
        """Write what is held, name the shards, write the index if there are several; returns the file names."""
        self._flush()
        if len(self._shards) == 1:
            (self._folder / _part(0)).rename(self._folder / "model.safetensors")
            return ["model.safetensors"]
        names: list[str] = []
        weight_map: dict[str, str] = {}
        for i, tensors in enumerate(self._shards):
            name = f"model-{i + 1:05d}-of-{len(self._shards):05d}.safetensors"
            (self._folder / _part(i)).rename(self._folder / name)
            names.append(name)
            weight_map |= dict.fromkeys(tensors, name)
        index = {"metadata": {"total_size": self.total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        index_name = "model.safetensors.index.json"
        (self._folder / index_name).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        return [*names, index_name]

    def _flush(self) -> None:
        if self._held:
            save_file(self._held, self._folder / _part(len(self._shards)), metadata={"format": "pt"})
            self._shards.append(list(self._held))
            self._held, self._held_bytes = {}, 0


def _part(index: int) -> str:
    return f"part-{index:05d}"
