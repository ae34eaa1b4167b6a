"""Writing files whole or not at all. Economics stands below records, hence its own few lines."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from inferoptim.errors import CapacityError, ConfigError


def write_whole(path: Path, text: str) -> Path:
    """Write `text` aside and rename; a reader sees the old file or the new one.

    Raises:
        ConfigError: the folder does not exist, or may not be written.
        CapacityError: the disk is full.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: name a file")
    try:
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except OSError as error:
        raise CapacityError(f"cannot write {path}: {error.strerror}") from error
    finally:
        if os.path.exists(aside):
            os.unlink(aside)
    return path
