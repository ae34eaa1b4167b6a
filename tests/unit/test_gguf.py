"""GGUF files become the Hugging Face folder that they were made from: weights, config, tokenizer, chat template."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import gguf
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from inferoptim.errors import DataError, UnsupportedError
from inferoptim.models.gguf import convert_gguf, unpermute
from inferoptim.models.gguf_blocks import open_blocks
from inferoptim.models.load import load_decoder
from inferoptim.models.sources import BLOCKS_NAME
from inferoptim.models.tokenizer import Tokenizer, load_tokenizer
from inferoptim.quant.formats import GroupedWeight
from inferoptim.quant.groups import dequantize
from tests.bpe import save_bpe_tokenizer
from tests.tiny import save_tiny_llama
from tests.tiny_gguf import permute, write_gguf


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    save_tiny_llama(folder, head_dim=16, vocab_size=512, rope_theta=100000.0)
    save_bpe_tokenizer(folder, vocab_size=512)
    write_gguf(folder, folder / "model.gguf", pre="gpt-2")
    return folder


@pytest.fixture(scope="module")
def converted(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    summary = convert_gguf(original / "model.gguf", folder)
    assert (summary.architecture, summary.quantization, summary.dtype) == (
        "LlamaForCausalLM",
        "F32",
        "float32",
    )
    return folder


def test_every_weight_comes_back_to_the_bit(original: Path, converted: Path):
    before, after = load_file(original / "model.safetensors"), load_file(converted / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor.float(), after[name].float()), name


def test_transformers_reads_the_folder_and_says_the_same(original: Path, converted: Path):
    tokens = torch.arange(5, 40)[None]
    with torch.inference_mode():
        before, after = (
            transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(tokens).logits
            for folder in (original, converted)
        )
    assert torch.equal(before, after)


@pytest.fixture(scope="module")
def tokenizers(original: Path, converted: Path) -> tuple[Tokenizer, Tokenizer]:
    return load_tokenizer(original), load_tokenizer(converted)


@given(st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_the_rebuilt_tokenizer_gives_the_ids_of_the_original(
    tokenizers: tuple[Tokenizer, Tokenizer], text: str
):
    original, rebuilt = tokenizers
    ids = original.encode(text)
    assert rebuilt.encode(text) == ids
    assert rebuilt.decode(ids) == original.decode(ids) == text


def test_special_tokens_and_chat_template_survive(tokenizers: tuple[Tokenizer, Tokenizer]):
    original, rebuilt = tokenizers
    messages = [{"role": "user", "content": "Où est le phare ? </s>"}]
    text = original.apply_chat_template(messages)
    assert rebuilt.apply_chat_template(messages) == text
    assert rebuilt.encode(text) == original.encode(text)
    assert rebuilt.eos_token_ids == (2,)
    assert rebuilt.special_ids == original.special_ids


def test_smollm_splits_digits_one_by_one(original: Path, tmp_path: Path):
    """The default model's rule (`tokenizer.ggml.pre` = smollm), against the tokenizers library's own Digits step."""
    write_gguf(original, tmp_path / "model.gguf", pre="smollm")
    (tmp_path / "out").mkdir()
    convert_gguf(tmp_path / "model.gguf", tmp_path / "out")
    tokenizer = load_tokenizer(tmp_path / "out")
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("en 2026, 12345.5")]
    digits = [piece for piece in pieces if any(c.isdigit() for c in piece)]
    assert digits == list("2026123455")


def test_rows_of_heads_are_put_back(original: Path):
    weight = torch.arange(4 * 8 * 3).reshape(32, 3).numpy()
    assert (unpermute(permute(weight, 4), 4) == weight).all()
    assert (permute(weight, 4) != weight).any()


@pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q4_1])
def test_blocks_are_kept_and_mean_what_ggml_says(
    original: Path, tmp_path: Path, kind: gguf.GGMLQuantizationType
):
    write_gguf(original, tmp_path / "model.gguf", kind=kind, pre="gpt-2")
    folder = tmp_path / "out"
    folder.mkdir()
    assert BLOCKS_NAME in convert_gguf(tmp_path / "model.gguf", folder).file_names
    name = "model.layers.1.self_attn.q_proj.weight"  # whose rows the file has in another order
    stored = next(
        t for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors if t.name == "blk.1.attn_q.weight"
    )
    heads = json.loads((folder / "config.json").read_text())["num_attention_heads"]
    expected = torch.from_numpy(gguf.quants.dequantize(unpermute(stored.data, heads), kind))
    with ExitStack() as stack:
        block = open_blocks(folder, stack)(name)
        assert block is not None
        assert block.bits == 4
        assert open_blocks(folder, stack)("model.norm.weight") is None
    assert torch.equal(dequantize(block, torch.float32).weight, expected)
    decoder = load_decoder(folder, device=torch.device("cpu"), dtype=torch.float32, quantization="int4")
    held = decoder.weights.layers[1].qkv
    assert isinstance(held, GroupedWeight)
    assert torch.equal(held.q[: len(block.q)], block.q)
    (folder / BLOCKS_NAME).write_bytes(b"cut short")
    with pytest.raises(DataError, match="damaged"):
        load_decoder(folder, device=torch.device("cpu"), dtype=torch.float32, quantization="int4")


def test_dense_weights_made_of_4_bit_blocks_give_the_blocks_again(original: Path, tmp_path: Path):
    """What a model folder converted before blocks were kept loads as."""
    write_gguf(original, tmp_path / "model.gguf", kind=gguf.GGMLQuantizationType.Q4_1, pre="gpt-2")
    convert_gguf(tmp_path / "model.gguf", tmp_path)
    of_file = load_decoder(tmp_path, device=torch.device("cpu"), dtype=torch.float32, quantization="int4")
    (tmp_path / BLOCKS_NAME).unlink()
    again = load_decoder(tmp_path, device=torch.device("cpu"), dtype=torch.float32, quantization="int4")
    for a, b in zip(of_file.weights.layers, again.weights.layers, strict=True):
        assert isinstance(a.down, GroupedWeight)
        assert isinstance(b.down, GroupedWeight)
        assert torch.equal(a.down.q, b.down.q)
        values, close = dequantize(a.down, torch.float32).weight, dequantize(b.down, torch.float32).weight
        assert (values - close).abs().max() < 2**-7 * values.abs().max()


@pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_1])
def test_quantised_files_are_near_and_become_bfloat16(
    original: Path, tmp_path: Path, kind: gguf.GGMLQuantizationType
):
    write_gguf(original, tmp_path / "model.gguf", kind=kind, pre="gpt-2")
    (tmp_path / "out").mkdir()
    summary = convert_gguf(tmp_path / "model.gguf", tmp_path / "out")
    assert (summary.quantization, summary.dtype) == (kind.name, "bfloat16")
    before, after = (
        load_file(original / "model.safetensors"),
        load_file(tmp_path / "out" / "model.safetensors"),
    )
    step = {"Q8_0": 1 / 127, "Q4_1": 1 / 15}[kind.name]
    for name, tensor in before.items():
        if tensor.ndim == 2:
            error = (tensor.float() - after[name].float()).abs().max()
            assert error < step * tensor.float().abs().max() * 1.1, name


def test_damaged_and_foreign_files_are_refused_in_one_line(original: Path, tmp_path: Path):
    whole = (original / "model.gguf").read_bytes()

    def refuse(data: bytes, error: type[Exception], what: str) -> None:
        path = tmp_path / "broken.gguf"
        path.write_bytes(data)
        (tmp_path / "out").mkdir(exist_ok=True)
        with pytest.raises(error, match=what) as caught:
            convert_gguf(path, tmp_path / "out")
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

    refuse(b"not a model", DataError, "not a GGUF file")
    refuse(whole[: len(whole) // 2], DataError, "truncated or damaged")
    refuse(whole[:40], DataError, "truncated or damaged")
    refuse(
        whole.replace(b"llama", b"bloom"),
        UnsupportedError,
        r"'bloom' is not supported \(supported: llama, qwen2, qwen3\)",
    )
    refuse(whole.replace(b"gpt-2", b"gpt-9"), UnsupportedError, "pre-tokenizer 'gpt-9' is not known")


def test_the_converted_settings_are_those_of_the_original(original: Path, converted: Path):
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (original, converted))
    for field in (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_key_value_heads",
        "tie_word_embeddings",
    ):
        assert after[field] == before[field], field
    assert after["rope_theta"] == 100000.0
