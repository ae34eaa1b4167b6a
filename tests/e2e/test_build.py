"""Artefacts of every recipe on a tiny model: loaded by transformers and by us, with what was kept, tuned and proved."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from inferoptim import LLM, EngineConfig
from inferoptim.bench.inputs import resolve
from inferoptim.bench.plan import BenchPlan
from inferoptim.build import pipeline, prove
from inferoptim.build.pipeline import BuildRequest, build_artefact
from inferoptim.build.recipe import Recipe
from inferoptim.build.step_bench import Situation
from inferoptim.build.tune import Plan, TuneRequest, tune
from inferoptim.build.tune_kernels import Question
from inferoptim.cli.main import main
from inferoptim.engine.scoring import Scorer
from inferoptim.models.artefact import engine_fields, tuned_fields
from inferoptim.models.hub import resolve_model
from inferoptim.models.load import load_decoder
from inferoptim.models.tokenizer import load_tokenizer
from inferoptim.quant.formats import DenseWeight, GroupedWeight, Int8Weight
from tests.artefacts import RECIPES, TEXT, request, tiny_source


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFEROPTIM_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_source(tmp_path_factory.mktemp("source"))


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
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = {"max_batch_size": 2, "max_input_len": 16, "max_output_len": 4}
    asked = tuple(Question(name, (32,), (Situation(2, 1, 8),)) for name in ("product_tasks", "block_size"))
    monkeypatch.setattr(
        "inferoptim.build.tune.plan", lambda *_, **__: Plan(asked, {"max_num_batched_tokens": (512,)})
    )
    out = tmp_path / "built"
    artefact = build_artefact(
        request(model, out, RECIPES["int8"], limits=limits, tune_budget_s=120.0, speed_runs=2)
    )
    assert artefact.tuning is not None
    assert artefact.benchmark is not None
    tried = {name for trial in artefact.tuning.trials for name in trial}
    assert {"max_num_batched_tokens", "product_tasks", "block_size"} <= tried
    assert main(["inspect", str(out)]) == 0
    assert "Tuned in" in capsys.readouterr().out
    assert artefact.benchmark.rows[0].output_tokens_per_s.value > 0
    assert engine_fields(out) == (artefact.engine, None)
    content = json.loads((out / "artefact.json").read_text())
    content["tuning"]["settings"] = {"product_tasks": 4}
    (out / "artefact.json").write_text(json.dumps(content))
    plan = BenchPlan(model=str(out), workloads=({"name": "guide", "prompt_tokens": 8, "output_tokens": 4},))
    assert (
        resolve(plan, resolve_model(str(out))).base["product_tasks"] == 4
    )  # bench measures what the build tuned here
    content["tuning"]["machine"]["processor"] = "another"
    content["tuning"]["settings"] = {"block_size": 32}
    content["engine"]["block_size"] = 32
    (out / "artefact.json").write_text(json.dumps(content))
    fields, warning = engine_fields(out)
    assert tuned_fields(out) == ({}, warning)
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


def _fields(request: BuildRequest) -> dict[str, Any]:
    return {name: getattr(request, name) for name in request.__dataclass_fields__}


def _digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.mark.parametrize("name", ["int8", "int4-zeros", "fp8-static"])
def test_a_model_that_does_not_fit_in_memory_is_proved_layer_by_layer(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(pipeline, "_free_memory_bytes", lambda: 30 << 20)
    monkeypatch.setattr(pipeline, "source_tensor_bytes", lambda spec, dtype: 16 << 20)
    whole: list[Any] = []
    real = load_decoder

    def load(folder: Path, **fields: Any) -> Any:
        whole.append(real(folder, **{**fields, "on_disk": None}))
        return real(folder, **fields)

    monkeypatch.setattr(prove, "load_decoder", load)
    artefact = build_artefact(request(model, tmp_path / "built", RECIPES[name]))
    assert artefact.quality is not None
    assert artefact.quality.computed_by == "Decoder, layers read one after the other"
    assert artefact.memory.resident_bytes == whole[1].weight_bytes
    ids = [list(b"One text."), list(b"And another one, longer.")]
    with ExitStack() as files:
        streamed = real(model, device=torch.device("cpu"), dtype=torch.float32, on_disk=files)
        assert len(streamed.weights.layers) == 2
        assert streamed.weight_bytes < whole[0].weight_bytes, "layers on disk are not held"
        logits = Scorer(streamed, 64).logits(*ids)
    loaded = real(model, device=torch.device("cpu"), dtype=torch.float32)
    torch.testing.assert_close(logits, Scorer(loaded, 64).logits(*ids), rtol=0, atol=0)


def test_where_not_even_one_layer_and_the_logits_fit_quality_is_not_measured(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_free_memory_bytes", lambda: 100 << 10)
    artefact = build_artefact(request(model, tmp_path / "built", RECIPES["int8"]))
    assert artefact.quality is None
    assert any("quality was not measured: that takes about" in line for line in artefact.warnings)
