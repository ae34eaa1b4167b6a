"""Compiling the native step: what is cached, what is refused, what is said when it cannot be."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from inferoptim.errors import ConfigError, UnsupportedError
from inferoptim.kernels import cpu
from inferoptim.kernels.cpu import build


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "home"
    monkeypatch.setenv("INFEROPTIM_HOME", str(folder))
    monkeypatch.delenv("INFEROPTIM_ISA", raising=False)
    cpu._state.cache_clear()
    yield folder
    monkeypatch.undo()
    cpu._state.cache_clear()


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A real compiler that compiles something smaller: a library with our version of the interface."""
    source = tmp_path / "small.cpp"
    source.write_text(f'extern "C" int io_abi() {{ return {build.ABI}; }}\n')
    return _compiler(
        tmp_path,
        monkeypatch,
        f'echo "$@" >> {tmp_path}/calls\nwhile [ "$1" != -o ]; do shift; done\nexec g++ -shared -fPIC {source} -o "$2"',
    )


def _compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    path = tmp_path / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    return path


def calls(tmp_path: Path) -> int:
    return len((tmp_path / "calls").read_text().splitlines())


def test_compiled_once_then_loaded(quick: Path, tmp_path: Path, home: Path):
    _, first = build.load()
    _, second = build.load()
    assert first == second
    assert first.parent == home / "native"
    assert calls(tmp_path) == 1
    assert not list(first.parent.glob("*.tmp"))


def test_a_half_written_library_is_built_again(quick: Path, tmp_path: Path, home: Path):
    isa = build.candidates()[0]
    path = home / "native" / f"step-{isa.name}-{build._key(isa, str(quick))}.so"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x7fELF, and then the machine lost its power")
    path.with_suffix(".77.tmp").write_bytes(b"left by a build that was killed")
    library, loaded = build.load()
    assert loaded == path
    assert library.io_abi() == build.ABI
    assert calls(tmp_path) == 1


def test_a_folder_that_cannot_be_written_costs_a_compilation_not_the_run(
    quick: Path, tmp_path: Path, home: Path, caplog: pytest.LogCaptureFixture
):
    home.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        library, _ = build.load()
    assert library.io_abi() == build.ABI
    assert "for this process only" in caplog.text


def test_a_compiler_that_fails_keeps_its_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path):
    _compiler(
        tmp_path, monkeypatch, 'echo "step.cpp:1: error: no room left in the register file" >&2; exit 3'
    )
    with pytest.raises(UnsupportedError, match="no room left in the register file") as caught:
        build.load()
    assert "\n" not in str(caught.value)
    logs = list((home / "native").glob("*.log"))
    assert logs
    assert all("no room left" in log.read_text() for log in logs)
    assert not list((home / "native").glob("*.so"))
    assert cpu.available() is False
    assert cpu.describe()["fallback"] == "torch operators"
    assert "no room left" in cpu.describe()["reason"]


def test_no_compiler_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UnsupportedError, match="apt-get install g"):
        build.load()


def test_an_unknown_instruction_set_is_refused_with_the_known_ones(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("INFEROPTIM_ISA", "avx9000")
    with pytest.raises(ConfigError, match="portable"):
        build.candidates()


def test_a_processor_that_lacks_the_forced_set_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "cpu_facts", lambda: type("Facts", (), {"isa": ("avx2",)}))
    monkeypatch.setenv("INFEROPTIM_ISA", "avx2")
    with pytest.raises(UnsupportedError, match="fma"):
        build.candidates()


def test_an_unknown_processor_gets_the_portable_step(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "cpu_facts", lambda: type("Facts", (), {"isa": ()}))
    assert [isa.name for isa in build.candidates()] == ["portable"]
