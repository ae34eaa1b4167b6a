"""The model in the peers' formats, made from the same checkpoint and kept under ``~/.cache/inferoptim/benchmarks``.

llama.cpp: a GGUF file in bfloat16 written here, then quantised by llama.cpp's own quantiser. OpenVINO: exported by
optimum-intel. Both appear under their names only once whole.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from tempfile import mkdtemp

import gguf
import torch
from safetensors import safe_open

from inferoptim.models.hub import ModelFiles
from inferoptim.models.load import read_spec

_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_QUANTISE = """
import sys, llama_cpp as c
source, target, kind, threads = sys.argv[1:]
params = c.llama_model_quantize_default_params()
params.ftype, params.nthread = getattr(c, "LLAMA_FTYPE_MOSTLY_" + kind), int(threads)
c.llama_backend_init()
sys.exit(c.llama_model_quantize(source.encode(), target.encode(), params))
"""


class ConvertError(Exception):
    """A peer's format could not be made; the message is one line."""


def gguf_file(files: ModelFiles, kind: str, python: Path, threads: int) -> Path:
    """The model as GGUF of `kind` (Q8_0, Q4_0, BF16)."""
    folder = _folder(files)
    dense = folder / "model-BF16.gguf"
    if not dense.exists():
        aside = dense.with_suffix(f".{os.getpid()}.tmp")
        _write_gguf(files.folder, aside)
        aside.replace(dense)
    path = folder / f"model-{kind}.gguf"
    if not path.exists():
        aside = path.with_suffix(f".{os.getpid()}.tmp")
        _call(
            [str(python), "-c", _QUANTISE, str(dense), str(aside), kind, str(threads)],
            "llama.cpp's quantiser",
        )
        aside.replace(path)
    return path


def openvino_folder(files: ModelFiles, weight_format: str, python: Path) -> Path:
    """The model as OpenVINO IR with weights in `weight_format` (int8, int4, fp32)."""
    path = _folder(files) / f"openvino-{weight_format}"
    if path.exists():
        return path
    aside = Path(mkdtemp(prefix=path.name, dir=path.parent))
    try:
        _call(
            [
                str(python.with_name("optimum-cli")),
                *("export", "openvino", "--model", str(files.folder), "--task", "text-generation-with-past"),
                *("--weight-format", weight_format, str(aside)),
            ],
            "optimum-intel's export",
        )
        aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return path


def _folder(files: ModelFiles) -> Path:
    home = os.environ.get("INFEROPTIM_HOME")
    base = Path(home) if home else Path.home() / ".cache" / "inferoptim"
    folder = base / "benchmarks" / files.fingerprint[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _call(command: list[str], what: str) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise ConvertError(f"{what} failed: {lines[-1] if lines else f'exit status {done.returncode}'}")


def _write_gguf(folder: Path, path: Path) -> None:
    """A Llama checkpoint without its tokenizer: the benchmark speaks in token ids."""
    spec = read_spec(folder)
    if spec.qkv_bias or spec.qk_norm or any(spec.sliding_windows):
        raise ConvertError("only plain Llama models are converted to GGUF here")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_context_length(spec.max_position)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_block_count(spec.num_layers)
    writer.add_feed_forward_length(spec.intermediate_size)
    writer.add_head_count(spec.num_heads)
    writer.add_head_count_kv(spec.num_kv_heads)
    writer.add_rope_dimension_count(spec.head_dim)
    writer.add_rope_freq_base(spec.rope_theta)
    writer.add_layer_norm_rms_eps(spec.rms_norm_eps)
    writer.add_vocab_size(spec.vocab_size)
    writer.add_tokenizer_model("none")
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (a safetensors file is no mapping)
                _add(writer, spec, name, tensors.get_tensor(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: gguf.GGUFWriter, spec, name: str, tensor: torch.Tensor) -> None:
    if name == "lm_head.weight" and spec.tied_embeddings:
        return
    top = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in top:
        target = top[name]
    elif name == "lm_head.weight":
        target = "output.weight"
    else:
        _, _, layer, rest = name.split(".", 3)
        target = f"blk.{layer}.{_NAMES[rest.removesuffix('.weight')]}.weight"
    heads = {"attn_q": spec.num_heads, "attn_k": spec.num_kv_heads}.get(target.split(".")[-2])
    if heads:  # llama.cpp rotates neighbouring pairs, Hugging Face halves
        tensor = tensor.view(heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
    if tensor.dim() == 1:
        writer.add_tensor(target, tensor.float().numpy())
    else:
        halves = tensor.to(torch.bfloat16).contiguous().view(torch.int16).numpy()
        writer.add_tensor(target, halves.view("uint8"), raw_dtype=gguf.GGMLQuantizationType.BF16)
