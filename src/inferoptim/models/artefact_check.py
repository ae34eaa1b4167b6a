"""The digests in an ``artefact.json`` against the files beside it: whoever loads the folder checks them first."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from inferoptim.errors import DataError
from inferoptim.models.sources import ARTEFACT_NAME


def check_digests(folder: Path, sha256_of: Mapping[str, str]) -> None:
    """Refuse an artefact that is not what was built. A folder without ``artefact.json`` passes.

    Args:
        sha256_of: file name → digest as found.

    Raises:
        DataError: a file was changed, is missing or was added, or the artefact cannot be read.
    """
    path = folder / ARTEFACT_NAME
    if not path.is_file():
        return
    try:
        stated: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["files"]
        items = sorted(stated.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read ({error!r}); build the artefact again") from error
    for name, digest in items:
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
