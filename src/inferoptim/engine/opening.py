"""A model's files before they are needed: checked, and brought into memory, by threads beside other work.

Imports no torch: a process that will load a model begins here, and imports torch meanwhile.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from inferoptim.models.hub import ModelFiles, local_folder, resolve_model

_CHUNK_BYTES = 128 << 10  # the system reads no more ahead for one call where a disk has its default settings
_MOST_SHARE = 0.5  # of the memory that is free: beyond, what was read first would be gone when it is wanted


class Opening:
    """A model that is about to be loaded.

    Args:
        name: as for `resolve_model`. A folder's files are checked and read from here on; any other name is resolved when it is
            asked for, since that may download.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._files: ModelFiles | None = None
        self._error: Exception | None = None
        self._reads = False
        self.folder = local_folder(name)
        self._checks = threading.Thread(target=self._check, name="model files", daemon=True)
        if self.folder is not None:
            self._checks.start()
            self._read_ahead(self.folder)

    def files(self) -> ModelFiles:
        """The files, checked.

        Raises:
            InferOptimError: as `resolve_model`.
        """
        if self.folder is not None:
            self._checks.join()
        elif self._files is None:
            self._check()
        if self._error is not None:
            raise self._error
        assert self._files is not None
        self._read_ahead(self._files.folder)
        return self._files

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """While the files are read before it is known that they are whole: an error in them is told instead of what it led to."""
        try:
            yield
        except Exception:
            self.files()
            raise

    def _check(self) -> None:
        try:
            self._files = resolve_model(self._name)
        except Exception as error:
            self._error = error

    def _read_ahead(self, folder: Path) -> None:
        if not self._reads and hasattr(os, "posix_fadvise"):
            self._reads = True
            threading.Thread(target=_read_ahead, args=(folder,), name="weights ahead", daemon=True).start()


def _read_ahead(folder: Path) -> None:
    """Ask the system for the pages of a folder's weights, without waiting for them and without copying."""
    with suppress(OSError, ValueError):
        shards = sorted(folder.glob("*.safetensors"))
        if sum(path.stat().st_size for path in shards) > _MOST_SHARE * _available_bytes():
            return
        for path in shards:
            with path.open("rb") as file:
                for at in range(0, path.stat().st_size, _CHUNK_BYTES):
                    os.posix_fadvise(file.fileno(), at, _CHUNK_BYTES, os.POSIX_FADV_WILLNEED)


def _available_bytes() -> int:
    """Memory that could be given out; 0 where the system does not say."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0
