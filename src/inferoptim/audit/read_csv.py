"""CSV traces: parsed column-wise block by block, row by row only where a block is not plain."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from inferoptim.audit.columns import Columns
from inferoptim.audit.formats import map_columns, require_lengths, with_time_unit
from inferoptim.audit.options import ReadOptions
from inferoptim.audit.rows import BadRow, Batch
from inferoptim.audit.source import Source
from inferoptim.audit.times import TimeParser
from inferoptim.errors import DataError

WORKERS = 2
AHEAD = 3  # blocks parsed ahead of the statistics; bounds memory
MAX_FIELD_BYTES = 64 << 20  # of a quoted field
csv.field_size_limit(MAX_FIELD_BYTES)


class CsvReader:
    """Reads one delimited file.

    Raises:
        ConfigError: the columns cannot be told. DataError: nothing in it, or two columns of one name.
    """

    def __init__(self, source: Source, options: ReadOptions) -> None:
        self.source = source
        text = source.head().decode("utf-8", "replace")
        start = text[:4096]
        if "\x00" in start or start.count("\ufffd") > len(start) // 20:
            raise DataError(
                f"{source.path}: not UTF-8 text, JSON, Parquet, gzip or Zstandard: no request log"
            )
        first = next((line for line in text.splitlines() if line.strip()), "")
        if not first:
            raise DataError(f"{source.path}: no text in it")
        self._delimiter = max(",;\t|", key=first.count)
        fields = next(csv.reader([first], delimiter=self._delimiter))
        self._names = [f.strip() for f in fields]
        self._skip = text[: text.find(first)].count("\n") + 1
        if _all_values(fields):  # no header: columns are known by position, from 0
            self._names, self._skip = [str(i) for i in range(len(fields))], self._skip - 1
        repeated = next((n for n in self._names if self._names.count(n) > 1), None)
        if repeated is not None:
            raise DataError(f"{source.path} line {self._skip}: two columns are called {repeated!r}")
        mapped = require_lengths(map_columns(self._names, options.map), self._names, str(source.path))
        self.mapped = with_time_unit(mapped, options.time_unit)
        self.times = TimeParser(self.mapped.scale.get("arrival"), options.timezone)
        self._columns = Columns(self.mapped, self.times, options)
        self._used = list(dict.fromkeys(self.mapped.columns.values()))
        rows = csv.reader(io.StringIO(text), delimiter=self._delimiter)
        for _ in range(self._skip):
            next(rows, None)
        if "arrival" in self.mapped.columns:
            index = self._names.index(self.mapped.columns["arrival"])
            self.times.decide(
                next((row[index] for row in rows if len(row) > index and row[index].strip()), None)
            )

    def batches(self) -> Iterator[Batch]:
        """Batches in the file's order; parsed on two threads, at most `AHEAD` blocks ahead."""
        with ThreadPoolExecutor(WORKERS) as pool:
            waiting: list[tuple[Future[Batch], int]] = []
            try:
                for line, block in _whole_records(self.source, self._skip):
                    waiting.append((pool.submit(self._parse, line, block), self.source.bytes_read))
                    if len(waiting) > AHEAD:
                        yield _result(*waiting.pop(0))
                while waiting:
                    yield _result(*waiting.pop(0))
            finally:
                for future, _ in waiting:
                    future.cancel()

    def _parse(self, line: int, block: bytes) -> Batch:
        import polars as pl

        if b'"' not in block and b"\r\r" not in block and b"\x00" not in block:
            try:
                frame = pl.read_csv(
                    block,
                    has_header=False,
                    schema=dict.fromkeys(self._names, pl.String),
                    separator=self._delimiter,
                    quote_char=None,
                ).select(self._used)
            except pl.exceptions.PolarsError:
                pass
            else:
                if len(frame) == block.count(b"\n"):
                    return self._columns.batch(frame, np.arange(line, line + len(frame)), [])
        return self._slowly(line, block)

    def _slowly(self, line: int, block: bytes) -> Batch:
        """Row by row, for quotes, ragged rows and broken UTF-8; a bad row is told from its neighbours."""
        import polars as pl

        bad: list[BadRow] = []
        kept: list[list[str]] = []
        lines: list[int] = []
        text = block.decode("utf-8", "replace").replace("\x00", "\ufffd")
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=self._delimiter)
        while True:
            start = line + reader.line_num
            try:
                row = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                bad.append(BadRow(start, f"not CSV: {error}"))
                continue
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(self._names):
                bad.append(BadRow(start, f"{len(row)} fields where the header has {len(self._names)}"))
            elif any("\ufffd" in cell for cell in row):
                bad.append(BadRow(start, "broken UTF-8"))
            else:
                kept.append(row)
                lines.append(start)
        frame = pl.DataFrame(kept, schema=dict.fromkeys(self._names, pl.String), orient="row").select(
            self._used
        )
        return self._columns.batch(frame, np.array(lines, dtype=np.int64), bad)


def _result(future: Future[Batch], bytes_read: int) -> Batch:
    batch = future.result()
    batch.bytes_read = bytes_read
    return batch


def _whole_records(source: Source, skip: int) -> Iterator[tuple[int, bytes]]:
    """Blocks that do not end inside a quoted field, without the first `skip` lines."""
    held, held_line, left = b"", 1, skip
    for line, block in source.blocks():
        while left and block:
            _, _, block = block.partition(b"\n")
            left, line = left - 1, line + 1
        if not block:
            continue
        if held:
            line, block = held_line, held + block
        # an odd number of quotes: a quoted field goes on in the next block, unless the quote is a stray one
        if block.count(b'"') % 2 and len(block) < MAX_FIELD_BYTES:
            held, held_line = block, line
            continue
        held = b""
        yield line, block
    if held:
        yield held_line, held


def _all_values(fields: list[str]) -> bool:
    """True where a first line holds numbers and dates only, so that it is data."""
    parser = TimeParser()
    return bool(fields) and all(f.strip() and not np.isnan(parser.one(f.strip())) for f in fields)
