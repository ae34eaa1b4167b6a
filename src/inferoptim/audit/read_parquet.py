"""Parquet traces, some hundred thousand rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from inferoptim.audit.columns import Columns
from inferoptim.audit.formats import map_columns, require_lengths, with_time_unit
from inferoptim.audit.options import ReadOptions
from inferoptim.audit.rows import Batch
from inferoptim.audit.source import Source
from inferoptim.audit.times import TimeParser
from inferoptim.errors import DataError

ROWS = 1 << 19  # rows of a slice


class ParquetReader:
    """Reads one Parquet file. Its "line" numbers are row numbers, from 1.

    Raises:
        ConfigError: the columns cannot be told. DataError: broken file.
    """

    def __init__(self, source: Source, options: ReadOptions) -> None:
        import polars as pl

        self.source = source
        self._broken = (pl.exceptions.PolarsError, OSError, ValueError)
        try:
            self._scan = pl.scan_parquet(source.path)
            names = self._scan.collect_schema().names()
        except self._broken as error:
            raise DataError(f"{source.path}: broken Parquet file ({error})") from error
        mapped = require_lengths(map_columns(names, options.map), names, str(source.path))
        self.mapped = with_time_unit(mapped, options.time_unit)
        self.times = TimeParser(self.mapped.scale.get("arrival"), options.timezone)
        self._columns = Columns(self.mapped, self.times, options)
        used = list(dict.fromkeys(self.mapped.columns.values()))
        self._used = used + [n for n in names if n.lower() == "hash_ids" and n not in used]

    def batches(self) -> Iterator[Batch]:
        """Batches in the file's order."""
        self.source.hash_all()
        start = 0
        while True:
            try:
                frame = self._scan.select(self._used).slice(start, ROWS).collect()
            except self._broken as error:
                if start == 0:
                    raise DataError(f"{self.source.path}: broken Parquet file ({error})") from error
                self.source.cut_off = f"{self.source.path}: cannot read beyond row {start} ({error})"
                return
            if not len(frame):
                return
            batch = self._columns.batch(frame, np.arange(start + 1, start + 1 + len(frame)), [])
            start += len(frame)
            batch.bytes_read = self.source.size
            yield batch
