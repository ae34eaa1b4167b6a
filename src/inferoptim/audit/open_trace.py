"""Which reader a file needs: by its first bytes, never by its name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from inferoptim.audit.formats import Mapped
from inferoptim.audit.options import ReadOptions
from inferoptim.audit.rows import Batch
from inferoptim.audit.source import Source
from inferoptim.audit.times import TimeParser


class Reader(Protocol):
    """What every reader offers."""

    source: Source
    mapped: Mapped
    times: TimeParser

    def batches(self) -> Iterator[Batch]: ...


def open_trace(path: Path, options: ReadOptions) -> Reader:
    """A reader for one file: Parquet, JSON lines, a JSON array, or delimited text; gzip and Zstandard are undone.

    Raises:
        ConfigError: no such file, or its columns cannot be told. DataError: empty or broken.
    """
    source = Source(path)
    if source.is_parquet:
        from inferoptim.audit.read_parquet import ParquetReader

        return ParquetReader(source, options)
    if source.head(4096).lstrip()[:1] in (b"{", b"["):
        from inferoptim.audit.read_json import JsonReader

        return JsonReader(source, options)
    from inferoptim.audit.read_csv import CsvReader

    return CsvReader(source, options)
