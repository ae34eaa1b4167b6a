"""Artefacts end to end on a tiny model: built, loaded by transformers and by us, tampered with, interrupted."""

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
from inferoptim.build.recipe import Recipe
from inferoptim.build.tune import TuneRequest, tune
from inferoptim.cli.main import main
from inferoptim.engine.scoring import Scorer
from inferoptim.errors import CapacityError, ConfigError, DataError, UnsupportedError
from inferoptim.models.artefact import engine_fields
from inferoptim.models.hub import resolve_model
from inferoptim.models.load import load_decoder
from inferoptim.models.tokenizer import load_tokenizer
from inferoptim.quant.formats import DenseWeight, GroupedWeight, Int8Weight
from inferoptim.records.schema import ConfigurationRecord, Interval, MetricSummary, Summary
from tests.tiny import save_tiny_llama, tiny_tokenizer

TEXT = [
    f"Paragraph {i}: the quick brown fox jumps over the lazy dog and runs along the river." for i in range(24)
]
RECIPES: dict[str, dict[str, Any]] = {
    "int8": {"quantization": "int8"},
    "int8-weight-only": {"quantization": "int8-weight-only"},
    "int4": {"quantization": "int4-weight-only", "group_size": 32},
    "int4-zeros": {"quantization": "int4-weight-only", "group_size": 32, "symmetric": False},
    "fp8": {"quantization": "fp8"},
    "fp8-static": {"quantization": "fp8", "granularity": "tensor", "activations": "static"},
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFEROPTIM_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    save_tiny_llama(folder, head_dim=16, num_hidden_layers=2)
    tiny_tokenizer(folder)
    return folder


def request(model: Path, out: Path, recipe: dict[str, Any], **fields: Any) -> BuildRequest:
    return BuildRequest(
        files=resolve_model(str(model)),
        out=out,
        recipe=Recipe.model_validate(recipe),
        calibration=TEXT[0::2],
        calibration_source="test",
        proof={"en": TEXT[1::4], "fr": TEXT[3::4]},
        proof_source="test",
        **{"calibration_tokens": 512, **fields},
    )


@pytest.mark.parametrize("name", list(RECIPES))
def test_transformers_loads_what_was_built_and_computes_the_same(
    model: Path, tmp_path: Path, name: str
) -> None:
    from transformers import AutoModelForCausalLM

    out = tmp_path / "built"
    artefact = build_artefact(request(model, out, RECIPES[name]))
    assert artefact.memory.tensors_bytes == artefact.memory.predicted_tensors_bytes
    assert artefact.quality is not None
    assert artefact.quality.perplexity_ratio.value == pytest.approx(1, abs=0.2)
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    ids = torch.tensor(
        [load_tokenizer(out).encode(TEXT[1])]
    )  # static scales hold for what calibration resembles
    with torch.no_grad():
        expected = theirs(ids).logits[0]
    decoder = load_decoder(out, device=torch.device("cpu"), dtype=torch.float32, emulate_fp8=True)
    got = Scorer(decoder, 128).logits(ids[0].tolist())
    error = (got - expected).norm() / expected.norm()
    if name in ("int8", "fp8-static"):
        # Inputs are rounded by other rules there (int8 scales of max / 127.5, static fp8 scales), so the noise differs;
        # its size must not: a misread scale would show as a much larger error against the source.
        with torch.no_grad():
            source = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)(ids).logits[0]
        assert (expected - source).norm() < 1.8 * (got - source).norm()
    else:
        assert error < 2e-3, error
    if name.startswith(
        "int4"
    ):  # the same integers, kept in groups; the inputs' rounding is what is left of the difference
        kept = load_decoder(out, device=torch.device("cpu"), dtype=torch.float32, quantization="int4")
        assert all(isinstance(layer.down, GroupedWeight) for layer in kept.weights.layers)
        error = (Scorer(kept, 128).logits(ids[0].tolist()) - expected).norm() / expected.norm()
        assert error < 0.03, error


def test_products_above_the_limit_stay_dense_and_are_ignored_by_other_engines(
    model: Path, tmp_path: Path
) -> None:
    free = build_artefact(request(model, tmp_path / "free", RECIPES["int4"]))
    errors = sorted(error for layer in free.layers for error in layer.products.values())
    limit = errors[len(errors) // 2]
    kept = build_artefact(request(model, tmp_path / "kept", {**RECIPES["int4"], "keep_above": limit}))
    names = [f"{layer.layer}.{product}" for layer in kept.layers for product in layer.kept]
    assert 0 < len(names) < 8
    config = json.loads((tmp_path / "kept" / "config.json").read_text())["quantization_config"]
    assert len(config["ignore"]) > 1
    assert kept.memory.tensors_bytes == kept.memory.predicted_tensors_bytes > free.memory.tensors_bytes
    assert LLM(EngineConfig.create(model=str(tmp_path / "kept"))).generate("The quick").token_ids


def test_the_most_sensitive_products_stay_dense_up_to_the_share(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = {**RECIPES["fp8"], "keep_share": 0.3}
    artefact = build_artefact(request(model, tmp_path / "built", recipe))
    alone = {(e.layer, p): s.kl_nats for e in artefact.layers for p, s in e.sensitivity.items()}
    kept = {(e.layer, p) for e in artefact.layers for p in e.kept}
    assert len(alone) == 8
    assert 0 < len(kept) < 8
    elements = {"qkv": 64 * 128, "o": 64 * 64, "gate_up": 64 * 256, "down": 64 * 128}
    assert sum(elements[p] for _, p in kept) <= 0.3 * 2 * sum(elements.values())
    assert max(alone, key=lambda key: alone[key] / elements[key[1]]) in kept
    left = [t.kl_nats_left for t in artefact.trade_off]
    assert left[0] == pytest.approx(sum(alone.values()), rel=1e-4)
    assert left == sorted(left, reverse=True)
    assert main(["inspect", str(tmp_path / "built")]) == 0
    assert "Where the loss comes from" in capsys.readouterr().out


def test_a_goal_is_met_by_the_cheapest_measured_choice_and_missed_aloud(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = build_artefact(request(model, tmp_path / "plain", RECIPES["int8"], calibration_tokens=1024))
    assert plain.quality is not None
    goal = {"max_kl": plain.quality.kl_nats.value / 2}
    texts = {"calibration": [text * 4 for text in TEXT[0::2]] * 2, "calibration_tokens": 1024}
    base = _fields(request(model, tmp_path / "built", {**RECIPES["int8"], **goal})) | texts
    artefact = build_artefact(BuildRequest(**base))
    (chosen,) = (t for t in artefact.trade_off if t.chosen)
    assert chosen.kl_nats is not None
    assert chosen.kl_nats.value <= goal["max_kl"]
    for other in artefact.trade_off:
        assert other.kl_nats is not None
        assert other.kl_nats.value > goal["max_kl"] or other.read_bytes >= chosen.read_bytes
    assert chosen.tensors_bytes == artefact.memory.tensors_bytes == artefact.memory.predicted_tensors_bytes
    assert (artefact.recipe.keep_share, artefact.recipe.quantise_head) == (chosen.share, chosen.head_rounded)
    assert sum(len(e.kept) for e in artefact.layers) == chosen.products > 0
    assert {"sensitivity", "quantising", "frontier", "proof"} <= artefact.built_in_s.keys()
    decoder = load_decoder(tmp_path / "built", device=torch.device("cpu"), dtype=torch.float32)
    for e, layer in zip(artefact.layers, decoder.weights.layers, strict=True):
        for product in ("qkv", "o", "gate_up", "down"):
            assert isinstance(getattr(layer, product), DenseWeight if product in e.kept else Int8Weight)
    assert main(["inspect", str(tmp_path / "built")]) == 0
    assert "chosen" in capsys.readouterr().out

    hard = base | {"out": tmp_path / "hard", "recipe": Recipe(max_kl=1e-12), "reproducible": True}
    missed = build_artefact(BuildRequest(**hard))
    assert any("met the goal" in line for line in missed.warnings) or missed.recipe.keep_share == 1
    build_artefact(BuildRequest(**hard | {"out": tmp_path / "again"}))
    assert _digests(tmp_path / "hard") == _digests(tmp_path / "again")
    both = ["build", str(model), "--out", str(tmp_path / "no"), "--keep-share", "0.1", "--max-kl", "0.1"]
    assert main(both) == 2
    assert "one or the other" in capsys.readouterr().err


def test_products_that_were_kept_stay_dense_where_the_head_is_rounded(model: Path, tmp_path: Path) -> None:
    artefact = build_artefact(request(model, tmp_path / "built", {**RECIPES["int8"], "keep_share": 0.3}))
    assert artefact.engine["quantization"] == "int8"  # of the head
    decoder = load_decoder(
        tmp_path / "built", device=torch.device("cpu"), dtype=torch.float32, **artefact.engine
    )
    kept = {(e.layer, product) for e in artefact.layers for product in e.kept}
    assert 0 < len(kept) < 8
    for index, layer in enumerate(decoder.weights.layers):
        for product in ("qkv", "o", "gate_up", "down"):
            wanted = DenseWeight if (index, product) in kept else Int8Weight
            assert isinstance(getattr(layer, product), wanted), (index, product)
    assert isinstance(decoder.weights.head, Int8Weight)


def test_tuned_and_timed_on_this_machine_and_told_apart_on_another(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = {"max_batch_size": 2, "max_input_len": 16, "max_output_len": 4}
    out = tmp_path / "built"
    artefact = build_artefact(
        request(model, out, RECIPES["int8"], limits=limits, tune_budget_s=120.0, speed_runs=2)
    )
    assert artefact.tuning is not None
    assert artefact.benchmark is not None
    tried = {name for trial in artefact.tuning.trials for name in trial}
    assert {"max_num_batched_tokens", "block_size"} <= tried
    assert artefact.benchmark.rows[0].output_tokens_per_s.value > 0
    assert engine_fields(out) == (artefact.engine, None)
    content = json.loads((out / "artefact.json").read_text())
    content["tuning"]["machine"]["processor"] = "another"
    content["tuning"]["settings"] = {"block_size": 32}
    content["engine"]["block_size"] = 32
    (out / "artefact.json").write_text(json.dumps(content))
    fields, warning = engine_fields(out)
    assert "block_size" not in fields
    assert fields["quantization"] == "int8"
    assert warning is not None
    assert "another" in warning
    assert "block_size" in warning


def test_the_tuner_ends_with_its_budget_and_remembers_nothing_of_an_empty_search(model: Path) -> None:
    tuning = tune(TuneRequest(model, {}, {}, budget_s=0.2))
    assert tuning.trials == ()
    assert tuning.settings == {}
    assert tuning.spent_s < 5


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


def test_compare_passes_a_model_against_itself_and_fails_the_higher_perplexity(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(model, other)
    weights = load_file(other / "model.safetensors")
    noise = torch.Generator().manual_seed(1)
    for name, tensor in weights.items():
        if "proj" in name:
            tensor += torch.randn(tensor.shape, generator=noise) * tensor.std()
    save_file(weights, other / "model.safetensors")
    (tmp_path / "texts.txt").write_text("\n".join(TEXT[:6]))
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text(
        '{"prompt": "The quick", "choices": [" brown", " green"], "answer": 0}\n{"prompt": "a", "regex": "."}\n'
    )
    common = [
        "--texts",
        str(tmp_path / "texts.txt"),
        "--tasks",
        str(tasks),
        "--runs",
        "2",
        "--concurrency",
        "2",
    ]
    common += ["--output-tokens", "4"]
    report = tmp_path / "report.md"
    assert main(["compare", str(model), str(model), *common, "--markdown", str(report)]) == 0
    assert "Model comparison: passed" in report.read_text()
    assert "detectable" in report.read_text()
    junit = tmp_path / "junit.xml"
    capsys.readouterr()
    assert main(["compare", str(other), str(model), *common, "--junit", str(junit), "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["perplexity_ratio"]["value"] > 1.02
    assert '<failure message="perplexity increase' in junit.read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU rounds the inputs of FP8 products")
def test_compare_says_that_a_cpu_does_not_round_the_inputs_of_fp8(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_artefact(request(model, tmp_path / "built", RECIPES["fp8"]))
    (tmp_path / "texts.txt").write_text("\n".join(TEXT[:3]))
    (tmp_path / "tasks.jsonl").write_text('{"prompt": "a", "regex": "."}\n')
    asked = ["--texts", str(tmp_path / "texts.txt"), "--tasks", str(tmp_path / "tasks.jsonl"), "--runs", "0"]
    asked += ["--max-perplexity-increase", "1", "--json"]
    assert main(["compare", str(model), str(tmp_path / "built"), *asked]) == 0
    result = json.loads(capsys.readouterr().out)
    assert "unrounded inputs" in " ".join(result["notes"])
    assert result["top1_agreement"]["high"] <= 1


def test_bad_tasks_are_named_by_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = tmp_path / "tasks.jsonl"
    for line, said in (
        ('{"prompt": "a"}', "either 'choices'"),
        ('{"prompt": "a", "choices": ["x", "y"], "answer": 2}', "0 to 1"),
        ('{"prompt": "a", "regex": "("}', "not a pattern"),
        ("nonsense", "not JSON"),
    ):
        tasks.write_text('{"prompt": "a", "regex": "x"}\n' + line + "\n")
        assert main(["compare", str(model), str(model), "--tasks", str(tasks)]) == 2
        error = capsys.readouterr().err
        assert "line 2" in error
        assert said in error


def _fields(request: BuildRequest) -> dict[str, Any]:
    return {name: getattr(request, name) for name in request.__dataclass_fields__}


def _digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}
