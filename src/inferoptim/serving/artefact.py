"""How an artefact wants to be served: the one part of artefact.json that the server reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from inferoptim.errors import DataError


def engine_fields(model: str) -> dict[str, Any]:
    """Fields of EngineConfig that the artefact in folder `model` was proved with; {} for any other model.

    Raises:
        DataError: its artefact.json cannot be read.
    """
    path = Path(model) / "artefact.json"
    if not path.is_file():
        return {}
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))["engine"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read as an artefact ({error!r})") from error
    if not isinstance(fields, dict):
        raise DataError(f"{path}: engine: an object is expected")
    return {name: value for name, value in fields.items() if name != "model"}
