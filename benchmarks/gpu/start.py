"""From command to first token, weights on disk: `python -m benchmarks.gpu --phases start`.

Run as a module of its own it is what gets timed: a process that loads a model folder and answers one request. With
--timeline it also writes what happens when (see `timeline.py`), which costs a little time itself.

    python -m benchmarks.gpu.start FOLDER [--timeline FILE]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.shapes import hf_config

ASKED_AT = "BENCHMARK_ASKED_AT"  # time.time() of the parent, right before it started the process
SETTINGS: dict[str, Any] = {
    "device": "cuda", "max_model_len": 2048, "max_num_seqs": 256, "max_num_batched_tokens": 8192, "kv_budget_bytes": 8 << 30,
}  # fmt: skip


def write_model(where: str, shape: str = "tiny", seed: int = 0) -> int:
    """A model folder of random bf16 weights, as a checkpoint on a disk is; its size in bytes."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models

    from inferoptim.models.spec import spec_from_config
    from inferoptim.models.weights import expected_shapes

    config, folder = hf_config(shape), Path(where)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    vocabulary = {f"w{i}": i for i in range(config["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.decoder = decoders.ByteLevel()  # a server streams text
    tokenizer.save(str(folder / "tokenizer.json"))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator(device).manual_seed(seed)
    tensors = {}
    for name, shape_ in expected_shapes(spec_from_config(config)).items():
        values = torch.randn(shape_, generator=generator, device=device, dtype=torch.bfloat16).mul_(0.02)
        tensors[name] = (values + 1 if len(shape_) == 1 else values).cpu()
    path = folder / "model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    forget_pages(path)
    return path.stat().st_size


def forget_pages(path: Path) -> None:
    """Let the system drop the file's pages, so that the next process reads it from the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cold(where: str, repeats: int) -> list[dict[str, Any]]:
    """Starts: the first with no compiled kernel and no page of the weights in memory, the others with the kernels kept."""
    seen = []
    with tempfile.TemporaryDirectory() as kernels:
        for number in range(1 + repeats):
            forget_pages(Path(where) / "model.safetensors")
            kept = {
                "TRITON_CACHE_DIR": kernels,
                "INFEROPTIM_HOME": kernels,
            }  # Triton's, those in CUDA C++, digests
            environment = {**os.environ, **kept, ASKED_AT: repr(time.time())}
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.gpu.start", where], env=environment, capture_output=True, text=True,
                check=False, timeout=240,
            )  # fmt: skip
            if done.returncode:
                raise RuntimeError(done.stderr[-1500:])
            seen.append({"kernels": "kept" if number else "none", **json.loads(done.stdout.splitlines()[-1])})
    return seen


def main() -> None:
    asked_at = float(os.environ.get(ASKED_AT) or time.time())
    from benchmarks.gpu.timeline import begin
    from inferoptim.engine.opening import Opening

    line = (
        begin(Path(sys.argv[sys.argv.index("--timeline") + 1]), asked_at)
        if "--timeline" in sys.argv
        else None
    )
    opening = Opening(sys.argv[1])  # as the server's engine process does, before anything brings torch
    if line is not None:
        line.imports()
    from inferoptim.config import EngineConfig, SamplingParams
    from inferoptim.engine.core import EngineCore
    from inferoptim.engine.request import Request

    imported = time.time()
    core = EngineCore(EngineConfig.create(model=sys.argv[1], **SETTINGS), opening)
    loaded = time.time()
    core.add(
        Request(
            "first", tuple(range(5, 105)), SamplingParams(temperature=0, max_tokens=2, ignore_eos=True), 0.0
        )
    )
    while not any(output.token_ids for output in core.step()):
        pass
    first = time.time()
    print(
        json.dumps(
            {
                "first_token_s": first - asked_at, "imports_s": imported - asked_at, "load_s": loaded - imported,
                "prompt_s": first - loaded, "settings": SETTINGS,
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
