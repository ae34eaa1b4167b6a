"""The key-value part of a GGUF file: what the model and its tokenizer are made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inferoptim.errors import DataError, UnsupportedError


class Metadata:
    """Values by key, with errors that name the file and the key."""

    def __init__(self, path: Path, fields: dict[str, Any]) -> None:
        self.path, self._fields = path, fields
        self.architecture = str(self.require("general.architecture"))

    def get(self, key: str, default: Any = None) -> Any:
        field = self._fields.get(key)
        return default if field is None else field.contents()

    def require(self, key: str) -> Any:
        if key not in self._fields:
            raise DataError(f"{self.path}: the metadata has no '{key}': not a complete language-model GGUF")
        return self.get(key)

    def arch(self, key: str, default: Any = None) -> Any:
        """`key` under the architecture's own prefix; a value per layer is refused."""
        value = self.get(f"{self.architecture}.{key}", default)
        if isinstance(value, list):
            raise UnsupportedError(
                f"{self.path}: '{key}' differs from layer to layer, which the decoder cannot run"
            )
        return value

    def require_arch(self, key: str) -> Any:
        self.require(f"{self.architecture}.{key}")
        return self.arch(key)
