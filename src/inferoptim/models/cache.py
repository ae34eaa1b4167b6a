"""The model cache on disk: one folder per model and revision, complete or absent, each with a manifest.

Invariants: a folder appears under its final name only once whole (written aside, synced, renamed), so readers need
no lock; writers of one model hold its lock file; whatever an interrupted writer left is removed by the next one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from inferoptim.errors import CapacityError, ConfigError, DataError
from inferoptim.units import format_bytes

MANIFEST_NAME = "manifest.json"
_FORMAT = 1
_STAGING_PREFIX = ".incoming-"

# progress(what, done_bytes, total_bytes): total is None where it is not known.
Progress = Callable[[str, int, "int | None"], None]


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file as it was when it was fetched."""

    name: str  # relative to the model's folder
    size_bytes: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What lies in a model folder and where it came from."""

    model: str
    revision: str
    origin: str  # 'hub', 'pypi', 'gguf' or 'local'
    files: tuple[FileRecord, ...]

    @property
    def fingerprint(self) -> str:
        """sha256 over names, sizes and content digests: equal exactly when the files are equal."""
        digest = hashlib.sha256()
        for record in sorted(self.files, key=lambda r: r.name):
            digest.update(f"{record.name}\0{record.size_bytes}\0{record.sha256}\n".encode())
        return digest.hexdigest()

    @property
    def size_bytes(self) -> int:
        return sum(record.size_bytes for record in self.files)


def cache_root() -> Path:
    """``$INFEROPTIM_HOME`` where it is set, else ``~/.cache/inferoptim/models``."""
    home = os.environ.get("INFEROPTIM_HOME")
    return Path(home).expanduser() if home else Path.home() / ".cache" / "inferoptim" / "models"


def sha256_file(path: Path, progress: Progress | None = None) -> str:
    """Content digest of `path`, reading 4 MiB at a time."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(4 << 20):
            digest.update(chunk)
            done += len(chunk)
            if progress:
                progress(f"checking {path.name}", done, total)
    return digest.hexdigest()


def record_files(folder: Path, names: list[str], progress: Progress | None = None) -> tuple[FileRecord, ...]:
    """Digest the named files of `folder`, as they are now."""
    records = []
    for name in sorted(names):
        stat = (folder / name).stat()
        records.append(FileRecord(name, stat.st_size, stat.st_mtime_ns, sha256_file(folder / name, progress)))
    return tuple(records)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write `manifest` to `path` atomically."""
    payload = {"format": _FORMAT, **asdict(manifest), "fingerprint": manifest.fingerprint}
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        aside.write_text(json.dumps(payload, indent=1) + "\n", encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def read_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Raises:
        DataError: it is missing, unreadable, or does not agree with its own fingerprint.
    """
    try:
        payload: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        files = tuple(FileRecord(**record) for record in payload["files"])
        manifest = Manifest(payload["model"], payload["revision"], payload["origin"], files)
        if payload["format"] != _FORMAT or payload["fingerprint"] != manifest.fingerprint:
            raise ValueError("its fingerprint does not match its content")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: unreadable manifest ({error}); {_REFETCH}") from error
    return manifest


_REFETCH = "fetch the model again with `inferoptim pull MODEL --force`"


def check_folder(folder: Path, *, verify: bool = False, progress: Progress | None = None) -> Manifest:
    """Compare a cached model with its manifest: sizes always, digests if `verify` or if a file was touched since.

    Raises:
        DataError: a file is missing, truncated or changed.
    """
    manifest = read_manifest(folder / MANIFEST_NAME)
    touched: dict[str, FileRecord] = {}
    for record in manifest.files:
        path = folder / record.name
        try:
            stat = path.stat()
        except OSError as error:
            raise DataError(f"{path}: missing from the model cache ({error.strerror}); {_REFETCH}") from error
        if stat.st_size != record.size_bytes:
            raise DataError(
                f"{path}: {stat.st_size} bytes where the manifest says {record.size_bytes}: "
                f"truncated or changed; {_REFETCH}"
            )
        if verify or stat.st_mtime_ns != record.mtime_ns:
            if sha256_file(path, progress) != record.sha256:
                raise DataError(f"{path}: its content is not what was fetched (sha256 differs); {_REFETCH}")
            if stat.st_mtime_ns != record.mtime_ns:
                touched[record.name] = replace(record, mtime_ns=stat.st_mtime_ns)
    if touched:
        manifest = replace(manifest, files=tuple(touched.get(r.name, r) for r in manifest.files))
        with suppress(OSError):  # a read-only cache is fine: the digests are simply checked again next time
            write_manifest(folder / MANIFEST_NAME, manifest)
    return manifest


_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG)
_OTHER_DISK = "set INFEROPTIM_HOME to another disk"


@contextmanager
def disk_errors(
    where: Path, what: str = "the model cache", instead: str = "a folder of yours with INFEROPTIM_HOME"
) -> Iterator[None]:
    """Turn the operating system's complaints about `where` into one line each.

    Args:
        what: is written there.
        instead: what to choose, and how.

    Raises:
        CapacityError: the disk is full. ConfigError: the place cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(where, advice=f"choose {instead}") from error
        if error.errno in _NOT_WRITABLE:
            raise ConfigError(
                f"cannot write {what} at {where} ({error.strerror}); choose {instead}"
            ) from error
        raise


def disk_full(where: Path, needed_bytes: int | None = None, advice: str = _OTHER_DISK) -> CapacityError:
    """The error for a full disk at `where`, with what is free and, if known, what is needed."""
    try:
        free = format_bytes(shutil.disk_usage(_existing_parent(where)).free)
    except OSError:
        free = "an unknown amount"
    need = f", {format_bytes(needed_bytes)} needed" if needed_bytes is not None else ""
    return CapacityError(f"disk full at {where}: {free} free{need}; free some room or {advice}")


def require_room(where: Path, needed_bytes: int, advice: str = _OTHER_DISK) -> None:
    """Refuse early what cannot fit.

    Raises:
        CapacityError: less than `needed_bytes` are free on the disk that holds `where`.
    """
    if shutil.disk_usage(_existing_parent(where)).free < needed_bytes:
        raise disk_full(where, needed_bytes, advice)


def _existing_parent(path: Path) -> Path:
    return next(p for p in (path, *path.absolute().parents) if p.exists())


@contextmanager
def model_lock(home: Path, progress: Progress | None = None) -> Iterator[None]:
    """Hold the lock of one model (`home` = its folder over all revisions); clears what a dead writer left there.

    The operating system releases the lock when its holder dies, however it dies. Lock files lie beside the models and stay: one
    that is removed while somebody waits for it would let two in.
    """
    with disk_errors(home):
        locks = home.parent / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / f"{home.name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if progress:
                progress("waiting for another process that fetches this model", 0, None)
            lock.acquire()
    try:
        with disk_errors(home):
            home.mkdir(exist_ok=True)
        for leftover in home.glob(f"{_STAGING_PREFIX}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield
    finally:
        with suppress(OSError):  # it holds something, or has never been made
            home.rmdir()  # nothing came of it
        lock.release()


@contextmanager
def staging(entry: Path) -> Iterator[Path]:
    """A scratch folder beside `entry` (whose lock the caller holds), gone at the end whatever happens."""
    with disk_errors(entry.parent):
        scratch = Path(tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=entry.parent))
    try:
        with disk_errors(entry.parent):
            yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def publish(folder: Path, entry: Path, manifest: Manifest) -> None:
    """Give the finished `folder` its final name `entry`, replacing an older copy."""
    write_manifest(folder / MANIFEST_NAME, manifest)
    for path in [*(folder / record.name for record in manifest.files), folder / MANIFEST_NAME, folder]:
        path.chmod(0o755 if path is folder else 0o644)  # temporary files begin private; a cache may be shared
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    if entry.exists():
        old = Path(tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=entry.parent))
        entry.replace(old / "old")
        folder.replace(entry)
        shutil.rmtree(old, ignore_errors=True)
    else:
        folder.replace(entry)
