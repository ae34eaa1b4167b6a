"""What loading, serving and comparing need of an ``artefact.json``: its digests and its engine settings. The one reader."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inferoptim.errors import DataError
from inferoptim.models.sources import ARTEFACT_NAME


def artefact_json(folder: Path) -> dict[str, Any] | None:
    """The content of the folder's ``artefact.json``; None where there is none.

    Raises:
        DataError: it cannot be read, or is not a JSON object.
    """
    path = folder / ARTEFACT_NAME
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as an artefact ({error}); build it again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: cannot be read as an artefact (a JSON object is expected); build it again")
    return content


def _part(folder: Path, content: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = content.get(name)
    if not isinstance(value, dict):
        raise DataError(f"{folder / ARTEFACT_NAME}: {name}: an object is expected; build the artefact again")
    return value


def engine_fields(folder: Path) -> tuple[dict[str, Any], str | None]:
    """Fields of EngineConfig that the artefact was proved with, and a warning for the user, if any.

    Settings tuned on another machine are left out: the engine's defaults hold there, and the warning says so.

    Returns:
        (fields, warning); ({}, None) for any other folder or a name that is no folder.

    Raises:
        DataError: artefact.json cannot be read.
    """
    content = artefact_json(folder)
    if content is None:
        return {}, None
    fields = {n: v for n, v in _part(folder, content, "engine").items() if n != "model"}
    settings, warning = _tuned(folder, content)
    return (
        (fields, None)
        if warning is None
        else ({n: v for n, v in fields.items() if n not in settings}, warning)
    )


def tuned_fields(folder: Path) -> tuple[dict[str, Any], str | None]:
    """Fields of EngineConfig that the artefact's build tuned on a machine like this one, and a warning where it was another.

    Returns:
        (fields, None), or ({}, warning), or ({}, None) where nothing was tuned.

    Raises:
        DataError: artefact.json cannot be read.
    """
    content = artefact_json(folder)
    settings, warning = ({}, None) if content is None else _tuned(folder, content)
    return ({}, warning) if warning else (settings, None)


def _tuned(folder: Path, content: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """(tuned settings, why they do not hold here)."""
    if content.get("tuning") is None:
        return {}, None
    from inferoptim.models.machine import machine  # torch, which a server's own process does without

    tuning = _part(folder, content, "tuning")
    settings, there, here = _part(folder, tuning, "settings"), _part(folder, tuning, "machine"), machine()
    other = [name for name in here | there if here.get(name) != there.get(name)]
    if not other or not settings:
        return settings, None
    differences = ", ".join(f"{n}: {there.get(n, 'none')} there, {here.get(n, 'none')} here" for n in other)
    return settings, (
        f"{folder}: tuned on another machine ({differences}); used with default values of {', '.join(settings)}; "
        "build it here with --tune-budget to tune it"
    )


def check_digests(folder: Path, sha256_of: Mapping[str, str]) -> None:
    """Refuse an artefact that is not what was built. A folder without ``artefact.json`` passes.

    Args:
        sha256_of: file name → digest as found.

    Raises:
        DataError: a file was changed, is missing or was added, or the artefact cannot be read.
    """
    content = artefact_json(folder)
    if content is None:
        return
    stated = _part(folder, content, "files")
    for name, digest in sorted(stated.items()):
        if name not in sha256_of:
            raise DataError(
                f"{folder}: the artefact lists {name}, which is missing or not a model file; build it again"
            )
        if sha256_of[name] != digest:
            raise DataError(
                f"{folder / name}: not the file that was built (its SHA-256 differs from artefact.json): "
                "tampered with or damaged; build the artefact again"
            )
    if added := sorted(set(sha256_of) - set(stated) - {ARTEFACT_NAME}):
        raise DataError(f"{folder / added[0]}: not part of the artefact; remove it or build again")
