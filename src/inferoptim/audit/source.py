"""A trace's bytes, streamed: plain, gzip or Zstandard; cut at line ends; hashed as they pass."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from inferoptim.errors import ConfigError, DataError

BLOCK_BYTES = 8 << 20
_COMPRESSED_BYTES = 64 << 10  # decompressed at a time: what it expands to must stay small
MAX_LINE_BYTES = 256 << 20  # a longer line is not a log
_GZIP, _ZSTD, _PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
_BOM = b"\xef\xbb\xbf"


class Source:
    """One file of a trace.

    Attributes:
        size: bytes on disk.
        bytes_read: of those, how many were read.
        cut_off: why reading stopped before the end (a truncated archive), or None.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.size = path.stat().st_size
            if path.is_dir():
                raise ConfigError(f"{path} is a folder: give its files")
            with open(path, "rb") as file:
                magic = file.read(4)
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        if self.size == 0:
            raise DataError(f"{path} is empty: nothing to audit")
        self.is_parquet = magic == _PARQUET
        self.compression = "gzip" if magic[:2] == _GZIP else "zstd" if magic == _ZSTD else None
        self.bytes_read = 0
        self.cut_off: str | None = None
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Of the bytes read so far."""
        return self._digest.hexdigest()

    def hash_all(self) -> None:
        """Hash the whole file, for readers that open it themselves."""
        with open(self.path, "rb") as file:
            while piece := file.read(BLOCK_BYTES):
                self._digest.update(piece)

    def head(self, n_bytes: int = 1 << 20) -> bytes:
        """The first bytes, decompressed, without a byte-order mark; nothing is counted or hashed.

        Raises:
            DataError: broken from the start.
        """
        held = b""
        with open(self.path, "rb") as raw:
            for piece in self._decompressed(raw):
                held += piece
                if len(held) >= n_bytes:
                    break
        if not held and self.cut_off:
            raise DataError(self.cut_off)
        self.cut_off = None
        return held[:n_bytes].removeprefix(_BOM)

    def blocks(self) -> Iterator[tuple[int, bytes]]:
        """(number of the first line, bytes) of consecutive blocks of whole lines."""
        line, rest = 1, b""
        for piece in self.pieces():
            cut = piece.rfind(b"\n")
            if cut < 0:
                rest += piece
                if len(rest) > MAX_LINE_BYTES:
                    raise DataError(
                        f"{self.path} line {line}: longer than {MAX_LINE_BYTES >> 20} MiB; not a log"
                    )
                continue
            block = rest + piece[: cut + 1]
            rest = piece[cut + 1 :]
            yield line, block
            line += block.count(b"\n")
        if rest:
            yield line, rest + b"\n"

    def pieces(self) -> Iterator[bytes]:
        """Consecutive pieces of the decompressed file, without a byte-order mark, cut anywhere."""
        held, first = bytearray(), True
        with open(self.path, "rb") as raw:
            for piece in self._decompressed(_Counted(raw, self)):
                held += piece
                if len(held) >= BLOCK_BYTES:
                    yield bytes(held.removeprefix(_BOM) if first else held)
                    held, first = bytearray(), False
        if held:
            yield bytes(held.removeprefix(_BOM) if first else held)

    def _decompressed(self, raw: Any) -> Iterator[bytes]:
        """What the file holds, as far as it can be read; then `cut_off` says why it ended early."""
        if self.compression is None:
            while piece := raw.read(BLOCK_BYTES):
                yield piece
            return
        frame, fed = self._frame(), False
        broken = self._errors()
        while data := raw.read(_COMPRESSED_BYTES):
            while data:
                fed = True
                try:
                    piece = frame.decompress(data)
                except broken as error:
                    self.cut_off = f"{self.path}: broken {self.compression} data ({error})"
                    return
                if piece:
                    yield piece
                if not frame.eof:
                    break
                data = frame.unused_data.lstrip(b"\x00")  # another frame, or padding
                frame, fed = self._frame(), False
        if fed:
            self.cut_off = f"{self.path}: {self.compression} data cut off"

    def _frame(self) -> Any:
        if self.compression == "gzip":
            return zlib.decompressobj(wbits=31)
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj()

    def _errors(self) -> tuple[type[Exception], ...]:
        if self.compression == "gzip":
            return (zlib.error,)
        import zstandard

        return (zstandard.ZstdError,)


class _Counted:
    """Counts and hashes what passes."""

    def __init__(self, raw: IO[bytes], source: Source) -> None:
        self._raw, self._source = raw, source

    def read(self, size: int) -> bytes:
        data = self._raw.read(size)
        self._source.bytes_read += len(data)
        self._source._digest.update(data)
        return data
