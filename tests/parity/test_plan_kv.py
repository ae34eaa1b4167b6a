"""The KV and fit calculators against what the engine allocates, what transformers stores, and published figures."""

from __future__ import annotations

import json

import pytest
import torch

from inferoptim import LLM, EngineConfig
from inferoptim.engine.kv_cache import allocate_kv_cache
from inferoptim.errors import CapacityError, DataError, UnsupportedError
from inferoptim.hardware.peaks import DEVICES, device_peaks
from inferoptim.models.hub import resolve_model
from inferoptim.models.spec import ModelSpec
from inferoptim.planner.kv import (
    element_bytes,
    facts_of,
    fit,
    kv_scale_bytes,
    kv_shape,
    model_facts,
    read_config,
    require_fit,
    weight_bytes_of,
)
from tests.tiny import save_tiny_llama, tiny_tokenizer

LLAMA = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 256,
         "intermediate_size": 128, "max_position_embeddings": 128}  # fmt: skip


def spec_of(config: dict) -> ModelSpec:
    heads = config["num_attention_heads"]
    return ModelSpec(
        architecture="LlamaForCausalLM", vocab_size=256, hidden_size=64, intermediate_size=128, num_layers=config["num_hidden_layers"],
        num_heads=heads, num_kv_heads=config.get("num_key_value_heads", heads), head_dim=config.get("head_dim", 64 // heads),
        max_position=128, rms_norm_eps=1e-5, rope_theta=1e4,
    )  # fmt: skip


@pytest.mark.parametrize("heads", [4, 2, 1])
@pytest.mark.parametrize("precision", ["bf16", "fp32", "int8", "fp8"])
def test_bytes_per_token_are_those_of_the_tensors_that_the_engine_allocates(heads, precision):
    config = {**LLAMA, "num_key_value_heads": heads, "head_dim": 24}
    kv = kv_shape(config)
    assert kv.kind == {4: "MHA", 2: "GQA", 1: "MQA"}[heads]
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    cache = allocate_kv_cache(
        spec_of(config), 5, 16, model_dtype=dtype, device=torch.device("cpu"),
        kv_quantization=precision if precision in ("int8", "fp8") else "none",
    )  # fmt: skip
    held = sum(
        t.numel() * t.element_size() for layer in cache.layers for t in (layer.k, layer.v, layer.k_scale, layer.v_scale) if t is not None
    )  # fmt: skip
    assert held == 5 * 16 * kv.bytes_per_token(element_bytes(precision), kv_scale_bytes(precision))


def test_a_loaded_engine_holds_what_the_plan_said(tmp_path):
    save_tiny_llama(tmp_path)
    tiny_tokenizer(tmp_path)
    facts = model_facts(str(tmp_path))
    budget = 1_000_000  # below the most that 32 sequences of 96 tokens can fill, which caps the cache
    llm = LLM(
        EngineConfig.create(
            model=str(tmp_path), dtype="float32", max_model_len=96, block_size=4, kv_budget_bytes=budget
        )
    )
    info = llm.core.info()
    token = facts.kv.bytes_per_token(4.0)
    assert info["kv_bytes_per_token"] == token
    assert info["kv_capacity_tokens"] == budget // (token * 4) * 4
    assert facts.max_position == 128


def test_weights_are_those_of_the_checkpoint(tmp_path):
    save_tiny_llama(tmp_path, num_key_value_heads=1, tie_word_embeddings=False)
    from safetensors import safe_open

    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - not a mapping
    linear = sum(shape[0] * shape[1] for shape in shapes.values() if len(shape) == 2)
    shape = model_facts(str(tmp_path)).shape
    assert shape is not None
    assert shape.stored == linear  # norms, below 0.01 % of a real model, are left out


def test_the_default_model_from_its_own_config():
    files = resolve_model("smollm2-135m", offline=True)
    facts = facts_of(read_config(files.folder), "smollm2", "config.json")
    assert (facts.kv.kind, facts.kv.layers) == ("GQA", 30)
    assert facts.kv.bytes_per_token(2.0) == 2 * 30 * 3 * 64 * 2
    assert weight_bytes_of(facts, "fp32") == pytest.approx(538e6, rel=1e-3)  # what docs and peers measured


# --- published figures ----------------------------------------------------------------------------------------

DEEPSEEK_V3 = {"num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128, "hidden_size": 7168,
               "kv_lora_rank": 512, "qk_rope_head_dim": 64, "n_routed_experts": 256}  # fmt: skip
LLAMA_405B = {
    "model_type": "llama",
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "hidden_size": 16384,
}
QWEN_72B = {"model_type": "qwen2", "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "hidden_size": 8192,
            "use_sliding_window": False, "sliding_window": 131072}  # fmt: skip


def test_mla_against_the_figures_of_the_deepseek_v3_authors():
    # Zhao et al. 2025, "Insights into DeepSeek-V3", table 1, BF16: 70.272 KB, 516.096 KB, 327.680 KB a token.
    assert kv_shape(DEEPSEEK_V3).kind == "MLA"
    assert kv_shape(DEEPSEEK_V3).bytes_per_token(2.0) == 70_272
    assert kv_shape(LLAMA_405B).bytes_per_token(2.0) == 516_096
    assert kv_shape(QWEN_72B).bytes_per_token(2.0) == 327_680


@pytest.mark.parametrize(
    ("config", "windowed"),
    [
        ({**LLAMA, "sliding_window": 8}, 0),  # Llama never reads it
        ({**LLAMA, "model_type": "mistral", "sliding_window": 8}, 3),
        ({**LLAMA, "model_type": "mistral", "sliding_window": None}, 0),
        ({**LLAMA, "model_type": "gemma2", "sliding_window": 8}, 2),  # layers 0 and 2 of 3
        ({**LLAMA, "model_type": "gemma3_text", "sliding_window": 8, "sliding_window_pattern": 3}, 2),
        (
            {
                **LLAMA,
                "model_type": "qwen2",
                "sliding_window": 8,
                "use_sliding_window": True,
                "max_window_layers": 2,
            },
            1,
        ),
        ({**LLAMA, "model_type": "qwen2", "sliding_window": 8, "use_sliding_window": False}, 0),
        (
            {
                **LLAMA,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
                "sliding_window": 8,
            },
            2,
        ),
    ],
)
def test_a_windowed_layer_keeps_its_window_and_no_more(config, windowed):
    kv = kv_shape(config)
    per_layer = kv.bytes_per_token_and_layer(2.0)
    assert kv.bytes_of_sequence(5, 2.0) == 5 * 3 * per_layer
    assert kv.bytes_of_sequence(100, 2.0) == (8 * windowed + 100 * (3 - windowed)) * per_layer


@pytest.mark.parametrize("config", [
    {**LLAMA, "model_type": "mistral", "sliding_window": 8, "num_key_value_heads": 2},
    {**LLAMA, "model_type": "qwen2", "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2, "num_key_value_heads": 4},
    {**LLAMA, "model_type": "gemma2", "sliding_window": 8, "head_dim": 16},
])  # fmt: skip
def test_windows_are_those_that_transformers_gives_the_layers(config):
    from transformers import AutoConfig, DynamicCache

    theirs = AutoConfig.for_model(**config)
    cache = DynamicCache(config=theirs)
    windows = [getattr(layer, "sliding_window", None) for layer in cache.layers]
    assert windows == list(kv_shape(theirs.to_dict()).windows)


# --- fit ------------------------------------------------------------------------------------------------------


def test_fit_by_hand():
    # Llama-2-7B in 16 bits on an 80 GB card at 90 %: 72 - 13.477 GB = 58.5 GB; 524 288 × 4 096 = 2.147 GB each: 27.
    facts = model_facts("Llama-2-7B")
    weights = weight_bytes_of(facts, "bf16")
    result = fit(facts.kv, weights, device_peaks("H100 SXM"), context=4096, batch=27)
    assert (result.max_batch, result.fits) == (27, True)
    assert result.max_context == int((72e9 - weights) / 27 / 524_288)
    with pytest.raises(CapacityError, match=r"fits 27 × 4096"):
        require_fit(fit(facts.kv, weights, device_peaks("H100 SXM"), context=4096, batch=28), 28, 4096)
    with pytest.raises(CapacityError, match="weights of"):
        require_fit(fit(facts.kv, weights, device_peaks("RTX 4070"), context=16), 1, 16)


def test_more_gpus_than_kv_heads_hold_copies():
    facts = model_facts("Llama-3.1-8B")  # 8 KV heads
    one, eight, sixteen = (
        fit(facts.kv, 16e9, device_peaks("H100 SXM"), context=100, gpus=n) for n in (1, 8, 16)
    )
    assert eight.kv_bytes_per_token == one.kv_bytes_per_token
    assert sixteen.kv_bytes_per_token == 2 * one.kv_bytes_per_token
    assert (
        fit(kv_shape(DEEPSEEK_V3), 1e9, device_peaks("H200"), context=100, gpus=8).kv_bytes_per_token
        == 8 * 70_272
    )


def test_max_batch_and_context_are_exact_on_every_card():
    kv = kv_shape({**LLAMA, "model_type": "mistral", "sliding_window": 4096, "num_hidden_layers": 32, "hidden_size": 4096,
                   "num_attention_heads": 32, "num_key_value_heads": 8})  # fmt: skip
    for device in DEVICES:
        result = fit(kv, 8e9, device, context=3000, batch=4)
        room = result.kv_room_bytes
        assert result.max_batch * kv.bytes_of_sequence(3000, 2.0) <= room * (1 + 1e-9)
        assert (result.max_batch + 1) * kv.bytes_of_sequence(3000, 2.0) > room
        if result.max_context < 1 << 40:
            assert (
                4 * kv.bytes_of_sequence(result.max_context, 2.0)
                <= room
                < 4 * kv.bytes_of_sequence(result.max_context + 1, 2.0)
            )
        else:  # all layers windowed: no length is too long
            assert 4 * kv.bytes_of_sequence(4096, 2.0) <= room


@pytest.mark.parametrize(
    ("config", "error", "said"),
    [
        ({}, DataError, "num_hidden_layers"),
        ({**LLAMA, "num_hidden_layers": "many"}, DataError, "whole number"),
        ({**LLAMA, "num_key_value_heads": 3}, DataError, "not a multiple"),
        ({**LLAMA, "hidden_size": 66}, DataError, "head_dim"),
        ({**LLAMA, "layer_types": ["linear_attention"] * 3}, UnsupportedError, "linear_attention"),
        ({**LLAMA, "layer_types": ["full_attention"]}, DataError, "1 layer_types for 3 layers"),
        ({**LLAMA, "layer_types": ["sliding_attention"] * 3}, DataError, "no sliding_window"),
    ],
)
def test_a_config_that_is_none_says_what_is_wrong(config, error, said):
    with pytest.raises(error, match=said):
        kv_shape(config)


def test_the_command_from_a_config_file(tmp_path, capsys):
    from inferoptim.cli.main import main

    file = tmp_path / "config.json"
    file.write_text(json.dumps(DEEPSEEK_V3), encoding="utf-8")
    assert (
        main(["plan", "kv", str(file), "--json"]) == 2
    )  # experts: the config alone does not give the weights
    assert "--parameters" in capsys.readouterr().err
    words = [
        "plan",
        "kv",
        str(file),
        "--parameters",
        "671e9",
        "--weights",
        "fp8",
        "--card",
        "H200",
        "--gpus",
        "8",
        "--json",
    ]
    assert main(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["attention"] == "MLA"
    assert result["kv_bytes_per_token"] == 70_272
    assert result["cards"][0]["fits"] is True
