"""What guards an artefact: digests, interruption, damaged sources, a full disk; and what is written into one later."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from inferoptim import LLM, EngineConfig
from inferoptim.build.artefact import Artefact, read_artefact, record_benchmark
from inferoptim.build.pipeline import BuildRequest, build_artefact
from inferoptim.cli.main import main
from inferoptim.errors import CapacityError, ConfigError, DataError, UnsupportedError
from inferoptim.models.hub import resolve_model
from inferoptim.records.schema import ConfigurationRecord, Interval, MetricSummary, Summary
from tests.artefacts import RECIPES, request, tiny_source


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFEROPTIM_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_source(tmp_path_factory.mktemp("source"))


def test_what_bench_measures_goes_into_the_artefact(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "built"
    assert build_artefact(request(model, out, RECIPES["int8"])).benchmark is None
    rate = Interval(value=100.0, low=90.0, high=110.0, n=5)
    config = ConfigurationRecord.model_construct(config_id="a", label="engine", status="ok")
    metric = MetricSummary(config_id="a", workload="chat", concurrency=8, runs=5, output_tokens_per_s=rate)
    summary = Summary.model_construct(configurations=(config,), metrics=(metric,))
    assert record_benchmark(out, summary)
    artefact = read_artefact(out)
    assert artefact is not None
    assert artefact.benchmark is not None
    assert artefact.benchmark.rows[0].output_tokens_per_s == rate
    assert LLM(EngineConfig.create(model=str(out))).generate("The quick").token_ids
    assert not record_benchmark(model, summary)


def test_reproducible_builds_are_equal_to_the_byte(model: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        build_artefact(request(model, tmp_path / name, RECIPES["int8"], reproducible=True))
    assert _digests(tmp_path / "one") == _digests(tmp_path / "two")


def test_a_changed_file_is_refused_by_inspect_and_by_the_engine(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "built"
    build_artefact(request(model, out, RECIPES["int8"]))
    assert main(["inspect", str(out)]) == 0
    assert "arithmetic says" in capsys.readouterr().out
    weights = load_file(out / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, out / "model.safetensors")
    assert main(["inspect", str(out)]) == 6
    assert "tampered with or damaged" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"model\.safetensors"):
        LLM(EngineConfig.create(model=str(out)))


def test_a_file_added_or_removed_is_refused(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "built"
    build_artefact(request(model, out, RECIPES["int8"]))
    (out / "chat_template.jinja").write_text("{{ 'other' }}")
    with pytest.raises(DataError, match="not part of the artefact"):
        resolve_model(str(out))
    (out / "chat_template.jinja").unlink()
    (out / "tokenizer_config.json").unlink()
    with pytest.raises(DataError, match="tokenizer_config"):
        resolve_model(str(out))


def test_an_interrupted_build_leaves_nothing_and_keeps_the_older_artefact(
    model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "built"
    before = build_artefact(request(model, out, RECIPES["int8"]))

    def interrupt(what: str, done: int, total: int) -> None:
        if what == "quantising layers" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_artefact(request(model, out, RECIPES["int4"], force=True), interrupt)
    assert [p.name for p in tmp_path.iterdir() if p.name != "home"] == ["built"]
    assert Artefact.model_validate_json((out / "artefact.json").read_text()) == before


def test_nothing_is_overwritten_without_force_and_only_artefacts_with_it(model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match="exists"):
        build_artefact(request(model, tmp_path / "mine", RECIPES["int8"]))
    with pytest.raises(ConfigError, match="not an artefact"):
        build_artefact(request(model, tmp_path / "mine", RECIPES["int8"], force=True))


def test_damaged_sources_are_refused(model: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(model, half)
    data = (half / "model.safetensors").read_bytes()
    (half / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"model\.safetensors"):
        build_artefact(request(half, tmp_path / "a", RECIPES["int8"]))
    poisoned = tmp_path / "nan"
    shutil.copytree(model, poisoned)
    weights = load_file(poisoned / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, poisoned / "model.safetensors")
    with pytest.raises(DataError, match=r"up_proj.*NaN"):
        build_artefact(request(poisoned, tmp_path / "b", RECIPES["int8"]))
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


def test_a_quantised_source_and_too_little_text_are_refused(model: Path, tmp_path: Path) -> None:
    build_artefact(request(model, tmp_path / "built", RECIPES["int8"]))
    with pytest.raises(UnsupportedError, match="already quantised"):
        build_artefact(request(tmp_path / "built", tmp_path / "again", RECIPES["int8"]))
    short = request(model, tmp_path / "short", RECIPES["int8"])
    with pytest.raises(DataError, match="at least 32"):
        build_artefact(BuildRequest(**{**_fields(short), "calibration": ["short"]}))


def test_a_full_disk_is_one_clear_error(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "inferoptim.models.cache.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(100, 100, 0)
    )
    with pytest.raises(CapacityError, match="disk full"):
        build_artefact(request(model, tmp_path / "full", RECIPES["int8"]))
    assert not (tmp_path / "full").exists()


def test_calibration_in_another_language_and_of_few_tokens_is_warned(model: Path, tmp_path: Path) -> None:
    base = request(model, tmp_path / "built", RECIPES["int8"], calibration_tokens=64)
    french = ["Le chat est sur la table et la porte est une des plus grandes de la maison." * 2]
    artefact = build_artefact(BuildRequest(**{**_fields(base), "calibration": french}))
    assert any("another language" in line for line in artefact.warnings)
    assert any("rest on chance" in line for line in artefact.warnings)


def test_modelopt_export_reads_back_and_refuses_other_recipes(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "built"
    recipe = {**RECIPES["fp8-static"], "kv_cache_dtype": "fp8"}
    build_artefact(request(model, out, recipe, export="modelopt"))
    stated = json.loads((out / "hf_quant_config.json").read_text())["quantization"]
    assert stated["quant_algo"] == stated["kv_cache_quant_algo"] == "FP8"
    weights = load_file(out / "model.safetensors")
    assert weights["model.layers.0.mlp.up_proj.weight_scale"].numel() == 1
    assert weights["model.layers.0.mlp.up_proj.input_scale"].numel() == 1
    assert LLM(EngineConfig.create(model=str(out))).generate("The quick").token_ids
    with pytest.raises(UnsupportedError, match="--fp8-granularity tensor"):
        build_artefact(request(model, tmp_path / "no", RECIPES["int8"], export="modelopt"))


def _fields(request: BuildRequest) -> dict[str, Any]:
    return {name: getattr(request, name) for name in request.__dataclass_fields__}


def _digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}
