"""What a person gets wrong: one line that says what, where and what to do, and a status that a script can read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from inferoptim import LLM, EngineConfig, SamplingParams
from inferoptim.errors import (
    CapacityError,
    ConfigError,
    DataError,
    InferOptimError,
    RequestError,
    UnsupportedError,
)
from tests.tiny import save_tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_llama(folder)
    tiny_tokenizer(folder)
    return folder


@pytest.fixture
def broken(model: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(model, tmp_path / "broken"))


def refused(error: type[InferOptimError], match: str, make: Callable[[], object]) -> None:
    with pytest.raises(error, match=match) as caught:
        make()
    assert "\n" not in str(caught.value), "a person gets one line"


def engine(model: Path | str, **fields: object) -> Callable[[], LLM]:
    return lambda: LLM(EngineConfig.create(model=str(model), dtype="float32", **fields))


def edit(folder: Path, name: str, **fields: object) -> None:
    path = folder / name
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **fields}))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"prefix_caching": True, "paged_kv": False}, "prefix_caching needs paged_kv"),
        ({"chunked_prefill": True, "in_flight_batching": False}, "chunked_prefill needs in_flight_batching"),
        ({"speculative": "draft"}, "needs draft_model"),
        ({"draft_model": "self:2"}, "speculative is not 'draft'"),
        ({"device": "cpu", "quantization": "fp8"}, "fp8 needs an NVIDIA GPU"),
        ({"tensor_parallel": 2}, "one device; for several GPUs serve"),
        ({"quantisation": "int8"}, "quantisation: no such field"),
        ({"block_size": 0}, "block_size: Input should be greater than or equal to 1"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_contradictory_levers(fields: dict[str, object], match: str):
    refused(ConfigError, match, lambda: EngineConfig.create(**fields))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens .9. is above max_tokens"),
        ({"stop": ("",)}, "empty stop string"),
        ({"logit_bias": {3: float("inf")}}, "logit_bias"),
        ({"top_kk": 3}, "top_kk"),
    ],
)
def test_sampling_that_means_nothing(fields: dict[str, object], match: str):
    refused(RequestError, match, lambda: SamplingParams.create(**fields))


def test_an_unsupported_architecture_is_named_with_what_is_supported(broken: Path):
    edit(broken, "config.json", architectures=["MambaForCausalLM"])
    refused(
        UnsupportedError,
        "MambaForCausalLM.*LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM",
        engine(broken),
    )


def test_an_unknown_rope_scaling_is_named(broken: Path):
    edit(broken, "config.json", rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4})
    refused(UnsupportedError, "'yarn' is not supported; supported: default, linear, llama3", engine(broken))


def test_a_tokenizer_that_disagrees_with_the_embedding(broken: Path):
    tokenizer = json.loads((broken / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["ĠĠ"] = 256
    (broken / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused(
        UnsupportedError,
        "ids up to 256 but the embedding has 256 rows.*do not belong together",
        engine(broken),
    )


def test_a_config_that_disagrees_with_the_weights(broken: Path):
    edit(broken, "config.json", intermediate_size=96)
    refused(
        DataError,
        r"mlp.gate_proj.weight' has shape \(128, 64\), config.json implies \(96, 64\)",
        engine(broken),
    )


def test_truncated_weights(broken: Path):
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(DataError, "model.safetensors: truncated or damaged", engine(broken))


def test_a_weight_that_is_not_a_number(broken: Path):
    path = broken / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-4] + b"\x00\x00\xc0\x7f")
    refused(DataError, "1 of .* NaN or infinite", engine(broken))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(broken: Path, name: str):
    (broken / name).unlink()
    refused(InferOptimError, name.replace(".", r"\."), engine(broken))


def test_prompts_that_do_not_fit(model: Path):
    llm = engine(model, max_model_len=48, kv_budget_bytes=512 * 64)()
    refused(
        RequestError,
        "the prompt has 48 tokens and max_model_len is 48: shorten it to 47 or raise max_model_len",
        lambda: llm.generate([[7] * 48]),
    )
    refused(RequestError, "the prompt is empty", lambda: llm.generate([""]))
    refused(RequestError, r"token id 999 is outside the vocabulary \(0…255\)", lambda: llm.generate([[999]]))
    assert llm.generate([[7] * 47], SamplingParams(max_tokens=5))[0].finish_reason == "length"


def test_a_budget_too_small_for_one_request_says_what_would_do(model: Path):
    refused(
        CapacityError,
        r"holds 0 tokens, but one sequence may take 128: set kv_budget_bytes >= \d+ or max_model_len <= 0",
        engine(model, kv_budget_bytes=2048),
    )


def test_a_context_longer_than_the_model(model: Path):
    refused(
        ConfigError,
        "max_model_len=4096 is above what .* was trained for .128 tokens",
        engine(model, max_model_len=4096),
    )


@pytest.mark.parametrize("draft", ["self:0", "self:2", "self:x"])
def test_a_draft_that_the_target_does_not_have(model: Path, draft: str):
    refused(ConfigError, "1 <= N < 2", engine(model, speculative="draft", draft_model=draft))


def test_a_draft_of_another_vocabulary(model: Path, tmp_path: Path):
    save_tiny_llama(tmp_path, vocab_size=300)
    tiny_tokenizer(tmp_path)
    refused(
        UnsupportedError,
        "must share the target's tokenizer",
        engine(model, speculative="draft", draft_model=str(tmp_path)),
    )


@pytest.mark.parametrize("name", ["no-such-alias", "a/b/c", "/nowhere/at/all", "missing.gguf"])
def test_a_model_name_that_means_nothing(name: str):
    refused(ConfigError, r"alias|does not exist", engine(name))


def test_a_bench_refuses_what_cannot_run_before_anything_is_written(broken: Path, tmp_path: Path):
    from inferoptim.bench.inputs import resolve
    from inferoptim.bench.plan import make_plan
    from inferoptim.models.hub import resolve_model

    fields = {
        "model": str(broken),
        "workloads": [{"name": "synthetic:20/8", "concurrency": [2]}],
        "quality": {"enabled": False},
    }
    files = resolve_model(str(broken))
    refused(
        ConfigError,
        r"kv_budget_bytes=1000 is less than one sequence of 28 tokens takes \(\d+ bytes\)",
        lambda: resolve(make_plan({**fields, "kv_budget_bytes": 1000}), files),
    )
    resolve(make_plan(fields), files)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(DataError, "model.safetensors: truncated or damaged", lambda: resolve_model(str(broken)))
