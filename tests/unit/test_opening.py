"""A model's files while something else goes on: read ahead, checked, and what is wrong with them said before what that leads to."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from inferoptim.config import EngineConfig
from inferoptim.engine import opening as opening_module
from inferoptim.engine.core import EngineCore
from inferoptim.engine.opening import Opening
from inferoptim.errors import ConfigError, DataError
from inferoptim.models.hub import resolve_model
from inferoptim.models.load import load_decoder
from inferoptim.models.stored_formats import Formats, LayerFormats, stored_formats
from inferoptim.quant.formats import DenseWeight, Fp8Weight, Int8Weight, Linear
from tests.tiny import save_tiny_llama, tiny_tokenizer, to_eight_bits


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny_llama(tmp_path)
    tiny_tokenizer(tmp_path)
    return tmp_path


def test_a_folder_is_checked_and_all_of_its_weights_are_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, at, size, advice: asked.append((at, size)))
    opening_module._read_ahead(folder)
    size = (folder / "model.safetensors").stat().st_size
    assert [at for at, _ in asked] == list(range(0, size, asked[0][1]))
    asked.clear()
    monkeypatch.setattr(opening_module, "_available_bytes", lambda: size)
    opening_module._read_ahead(folder)
    assert asked == [], "half of what is free would not hold it"
    opening = Opening(str(folder))
    assert opening.folder == folder.resolve()
    assert opening.files() == resolve_model(str(folder))


def test_what_is_wrong_with_the_files_is_said_before_what_it_leads_to(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(Exception) as direct:
        resolve_model(str(folder))
    with pytest.raises(type(direct.value)) as through:
        EngineCore(EngineConfig.create(model=str(folder)))
    assert str(through.value) == str(direct.value)


def test_content_that_is_not_what_its_digest_says_is_refused_though_it_loads(folder: Path) -> None:
    proof = {"files": {"model.safetensors": "0" * 64}}
    (folder / "artefact.json").write_text(json.dumps(proof))
    with pytest.raises(DataError, match=r"not the file that was built|not part of the artefact") as direct:
        resolve_model(str(folder))
    with pytest.raises(DataError) as through:
        EngineCore(EngineConfig.create(model=str(folder), max_num_seqs=2, kv_budget_bytes=1 << 20))
    assert str(through.value) == str(direct.value)


def test_another_name_is_resolved_when_it_is_asked_for() -> None:
    opening = Opening("no/such/model.gguf")
    assert opening.folder is None
    with pytest.raises(ConfigError, match="does not exist"):
        opening.files()


def _format(weight: Linear) -> str:
    if isinstance(weight, Int8Weight):
        return "int8" if weight.dynamic_activations else "int8-weight-only"
    return "fp8" if isinstance(weight, Fp8Weight) else "none"


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.int8])
@pytest.mark.parametrize("inputs", [True, False])
def test_formats_read_from_headers_are_those_that_are_loaded(
    folder: Path, kind: torch.dtype, inputs: bool
) -> None:
    """An artefact that keeps products in the model's type: `down` of the first layer, and `q` of the second."""
    to_eight_bits(folder, kind, ("0.mlp.down_proj", "1.self_attn.q_proj"), inputs)
    decoder = load_decoder(folder, device=torch.device("cpu"), dtype=torch.float32, emulate_fp8=True)
    layers = tuple(
        LayerFormats(_format(w.qkv), _format(w.o), _format(w.gate_up), _format(w.down))
        for w in decoder.weights.layers
    )
    assert stored_formats(folder, "none") == Formats(layers, _format(decoder.weights.head))
    assert layers[0].down == layers[1].qkv == "none"
    assert layers[0].qkv == layers[1].down != "none"
    assert isinstance(decoder.weights.layers[1].qkv, DenseWeight)
