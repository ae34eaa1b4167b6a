"""Compiles the native step with the system's C++ compiler at first use, and keeps it: one library per source,
compiler and instruction set, under ``$INFEROPTIM_HOME/native`` or ``~/.cache/inferoptim/native``.

A library appears under its name only once whole, so an interrupted build leaves nothing that could be loaded.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from inferoptim.errors import ConfigError, UnsupportedError
from inferoptim.hardware.cpu import cpu_facts
from inferoptim.hardware.measure_cpu import find_compiler

ABI = 5  # io_abi() of step.cpp
_SOURCES = tuple(
    sorted(path.name for path in Path(__file__).parent.glob("*.[ch]*") if path.suffix in (".cpp", ".h"))
)
_FLAGS = ("-O2", "-std=c++17", "-shared", "-fPIC", "-pthread", "-fno-math-errno", "-ffp-contract=off", "-w")
_TIMEOUT_S = 300
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Isa:
    """An instruction set that the sources are written for."""

    name: str
    needs: frozenset[str]  # what cpu_facts().isa must list
    flags: tuple[str, ...]


_AVX512 = (
    "-mavx512f",
    "-mavx512bw",
    "-mavx512vl",
    "-mavx512dq",
    "-mfma",
    "-mprfchw",
    "-mprefer-vector-width=512",
)
ISAS = (  # best first; the last one runs on any processor that the compiler targets
    Isa(
        "avx512-vnni-bf16",
        frozenset({"avx512f", "avx512bw", "avx512_vnni", "avx512_bf16"}),
        (*_AVX512, "-mavx512vnni", "-mavx512bf16"),
    ),
    Isa("avx512-vnni", frozenset({"avx512f", "avx512bw", "avx512_vnni"}), (*_AVX512, "-mavx512vnni")),
    Isa("avx2", frozenset({"avx2", "fma", "f16c"}), ("-mavx2", "-mfma", "-mf16c")),
    Isa("portable", frozenset(), ()),
)


def candidates() -> tuple[Isa, ...]:
    """The instruction sets to try on this processor, best first; ``INFEROPTIM_ISA`` names the only one.

    Raises:
        ConfigError: INFEROPTIM_ISA is no name of ours.
        UnsupportedError: this processor does not have it.
    """
    has = set(cpu_facts().isa)
    forced = os.environ.get("INFEROPTIM_ISA")
    if not forced:
        return tuple(isa for isa in ISAS if isa.needs <= has)
    for isa in ISAS:
        if isa.name == forced:
            if not isa.needs <= has:
                lacking = ", ".join(sorted(isa.needs - has))
                raise UnsupportedError(f"INFEROPTIM_ISA={forced}: this processor lacks {lacking}")
            return (isa,)
    names = ", ".join(isa.name for isa in ISAS)
    raise ConfigError(f"INFEROPTIM_ISA={forced}: unknown; it is one of {names}")


def cache_folder() -> Path:
    """Where compiled libraries and the logs of failed builds are kept."""
    home = os.environ.get("INFEROPTIM_HOME")
    return (Path(home) if home else Path.home() / ".cache" / "inferoptim") / "native"


def load() -> tuple[ctypes.CDLL, Path]:
    """The library for this processor, compiled if it is not there yet (about 10 s, once).

    Raises:
        UnsupportedError: no compiler, or none of the instruction sets compiles; says which message the compiler left.
    """
    compiler = find_compiler()
    failures = []
    for isa in candidates():
        path = cache_folder() / f"step-{isa.name}-{_key(isa, compiler)}.so"
        try:
            return _open(path), path
        except OSError:
            pass  # not there yet, or cut short by a crash of the machine: compile it (again)
        if compiler is None:
            raise UnsupportedError(
                "no C++ compiler found (looked for $CXX, g++, clang++, c++); on Debian and Ubuntu: apt-get install g++"
            )
        try:
            return _build(compiler, isa, path), path
        except UnsupportedError as error:
            failures.append(str(error))
    raise UnsupportedError(failures[-1])


def _key(isa: Isa, compiler: str | None) -> str:
    digest = hashlib.sha256()
    for name in _SOURCES:
        digest.update(Path(__file__).with_name(name).read_bytes())
    if compiler is not None:
        real = Path(compiler).resolve()
        stat = real.stat()
        digest.update(f"{real}{stat.st_size}{stat.st_mtime_ns}".encode())
    digest.update(" ".join((*_FLAGS, *isa.flags)).encode())
    return digest.hexdigest()[:16]


def _open(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.io_abi.restype = ctypes.c_int32
    if library.io_abi() != ABI:
        raise OSError(f"{path}: another version of the interface")
    return library


def _build(compiler: str, isa: Isa, path: Path) -> ctypes.CDLL:
    """Compile beside the cache, rename into it, load. In a private folder where the cache cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(path.with_suffix(".lock")), timeout=_TIMEOUT_S)
        with lock:
            if path.exists():  # another process has just built it
                try:
                    return _open(path)
                except OSError:
                    path.unlink()
            aside = path.with_suffix(f".{os.getpid()}.tmp")
            try:
                _compile(compiler, isa, aside, path.with_suffix(".log"))
                os.replace(aside, path)
            finally:
                aside.unlink(missing_ok=True)
            return _open(path)
    except OSError as error:
        _log.warning(
            "%s cannot be used (%s); compiling for this process only", path.parent, error.strerror or error
        )
        try:
            with tempfile.TemporaryDirectory(prefix="inferoptim-native-") as folder:
                private = Path(folder) / path.name
                _compile(compiler, isa, private, None)
                return _open(private)  # stays mapped after the file is gone
        except OSError as other:
            raise UnsupportedError(f"nowhere to put the compiled kernels: {other}") from other


def _compile(compiler: str, isa: Isa, output: Path, log: Path | None) -> None:
    source = Path(__file__).with_name("step.cpp")
    command = [compiler, *_FLAGS, *isa.flags, str(source), "-o", str(output)]
    _log.info("compiling the native CPU step for %s, once", isa.name)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        message, status = done.stderr, f"exit status {done.returncode}"
    except subprocess.TimeoutExpired:
        message, status = "", f"no end after {_TIMEOUT_S} s"
        done = None
    if done is not None and done.returncode == 0:
        return
    kept = ""
    if log is not None:
        log.write_text(" ".join(command) + "\n\n" + message, encoding="utf-8")
        kept = f"; its message is in {log}"
    first = next((line.strip() for line in message.splitlines() if "error" in line.lower()), status)
    raise UnsupportedError(f"{compiler} did not compile the native step for {isa.name}: {first}{kept}")
