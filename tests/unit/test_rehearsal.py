"""Kernels compiled before a GPU is asked for anything: without one, as far as files in Triton's cache."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny import save_tiny_llama, to_eight_bits

pytest.importorskip("triton", reason="triton is not installed (it comes with CUDA builds of torch)")

_REHEARSE = """
import sys
from pathlib import Path
import torch
from triton.backends.nvidia import driver
from inferoptim.config import EngineConfig
from inferoptim.engine import rehearsal
from inferoptim.engine.rehearsal import launch_everything, rehearse
from inferoptim.kernels.triton import precompile
from inferoptim.models.load import read_spec
from inferoptim.models.stored_formats import Formats
folder = Path(sys.argv[1])
fields = {"max_model_len": 48, "max_num_seqs": 3, "max_num_batched_tokens": 600, "kv_budget_bytes": 1 << 20}
config = EngineConfig.create(model=sys.argv[1], **fields)
with precompile.collecting((9, 0)) as jobs:
    launch_everything(read_spec(folder), config, torch.bfloat16, Formats.of_one("fp8", 2))
print(*{job.name for job in jobs}, sep=chr(10))
every = rehearsal.compile_side_by_side  # each takes its time: one of them
rehearsal.compile_side_by_side = lambda jobs, most: every([job for job in jobs if job.name == "_embed"], most)
def launcher(*args):  # stands in for C that wants libcuda
    assert not fails
fails, driver.CudaLauncher = True, launcher
torch.rand(1 << 21).exp()  # torch's own threads have begun, and do not follow into a forked process
begun = rehearse(folder, config, torch.bfloat16, (9, 0))
begun.wait()
assert begun._over.is_set(), "waited for threads that are not there"
fails = False
begun = rehearse(folder, config, torch.bfloat16, (9, 0))  # again, for not all went well
begun.wait()
assert begun._over.is_set()
assert rehearse(folder, config, torch.bfloat16, (9, 0)) is None, "done before"
assert rehearsal._name(folder, config, torch.bfloat16, (8, 0)) != rehearsal._name(folder, config, torch.bfloat16, (9, 0))
"""


def test_every_kernel_of_the_steps_is_compiled_by_other_processes(tmp_path: Path) -> None:
    folder, kernels = tmp_path / "model", tmp_path / "kernels"
    folder.mkdir()
    save_tiny_llama(folder)
    environment = {**os.environ, "TRITON_CACHE_DIR": str(kernels), "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", _REHEARSE, str(folder)], env=environment, check=True, capture_output=True, text=True
    )  # fmt: skip
    few = {"_norm_qkv_rope", "_norm_gate_up", "_linear_residual", "_norm_head", "_decode"}
    many = {
        "_embed",
        "_rms_norm",
        "_rope_write",
        "_varlen",
        "_quantize_rows",
        "_silu_mul",
        "_adjust_shares",
        "_choose",
    }
    assert few | many <= set(done.stdout.splitlines())
    assert {path.stem for path in kernels.rglob("*.cubin")} == {"_embed"}


_ENGINE = """
import os, signal, sys, time
from pathlib import Path
import torch
from inferoptim.config import EngineConfig
from inferoptim.engine import rehearsal
from inferoptim.kernels.triton.precompile import Job
folder, told = Path(sys.argv[1]), int(sys.argv[2])
def forever():
    os.write(told, f"{os.getpid()} ".encode())
    signal.pause()
rehearsal.launch_everything = lambda *args: None
every = rehearsal.compile_side_by_side
def tell(jobs, most):
    os.write(told, f"{os.getpid()} ".encode())
    return every([job._replace(run=rehearsal._ending(Job("forever", forever)).run) for job in jobs], most)
rehearsal.compile_side_by_side = tell
begun = rehearsal.rehearse(folder, EngineConfig.create(model=sys.argv[1]), torch.bfloat16, (9, 0))
begun.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a process is told of its parent's end on Linux alone")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_what_compiles_ahead_ends_with_the_engine(tmp_path: Path, how: signal.Signals) -> None:
    """However the engine ends: a process left over would keep the server's socket open, and a core busy."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_tiny_llama(folder)
    told, tell = os.pipe()
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "kernels")}
    engine = subprocess.Popen(
        [sys.executable, "-c", _ENGINE, str(folder), str(tell)], env=environment, pass_fds=(tell,), stderr=subprocess.DEVNULL
    )  # fmt: skip
    os.close(tell)
    said = b""
    while said.count(b" ") < 2:
        said += os.read(told, 100)
    ends = [os.pidfd_open(int(pid)) for pid in said.split()]
    engine.send_signal(how)
    engine.wait(30)
    for end in ends:
        assert select.select([end], [], [], 30)[0], "still there"
        os.close(end)
    assert os.read(told, 100) == b"", "somebody else holds the pipe"
    os.close(told)


_SAME = """
import sys
from pathlib import Path
from types import SimpleNamespace
import torch
import triton
from triton.runtime.jit import JITFunction
from inferoptim.config import EngineConfig
from inferoptim.engine import cuda_runner
from inferoptim.engine.cuda_graphs import GraphLadder
from inferoptim.engine.gpu_memory import logit_rows
from inferoptim.engine.kv_cache import allocate_kv_cache
from inferoptim.engine.rehearsal import launch_everything
from inferoptim.kernels.cuda import attention, linear, prompts
from inferoptim.kernels.cuda import compile as compiler
from inferoptim.kernels.triton import launch, precompile
from inferoptim.models import cuda
from inferoptim.models.load import load_decoder, read_spec
from inferoptim.models.stored_formats import stored_formats
folder = Path(sys.argv[1])
config = EngineConfig.create(model=sys.argv[1], max_model_len=256, max_num_seqs=70, max_num_batched_tokens=1200)
seen = set()
def note(kernel, *args, grid, warmup, **fields):
    binder, mode = kernel.device_caches[0][-1], triton.knobs.compilation.instrumentation_mode
    _, types, options = binder(*args, **fields, debug=kernel.debug, instrumentation_mode=mode)
    seen.add(f"{kernel.__name__} {types} {options}")
compiler.load = lambda source, name, defines, device, **fields: seen.add(f"{name} {sorted(defines.items())} {sorted(fields.items())}")
compiler.launch = lambda *args, **fields: None
compiler.unsupported = lambda device, dtype: None
torch._scaled_mm = lambda *args, **fields: None
with precompile.collecting((9, 0)):
    JITFunction.run = note
    launch_everything(read_spec(folder), config, torch.bfloat16, stored_formats(folder, "none"))
    rehearsed, seen = seen, set()
    launch.capability = lambda device: (9, 0)
    for kernels in (attention, linear, prompts):
        kernels._kernel.cache_clear()
    cuda.unsupported = lambda decoder: None
    torch.cuda.graph_pool_handle = lambda: None
    torch.cuda.Event = lambda **fields: SimpleNamespace(record=lambda: None, synchronize=lambda: None)
    GraphLadder.capture = lambda self, size: self._work(size)
    decoder = load_decoder(folder, device=torch.device("cpu"), dtype=torch.bfloat16, emulate_fp8=True)
    with torch.inference_mode():
        step = cuda.CudaDecoder(decoder, max_num_seqs=70, max_tokens=1200, max_model_len=256, max_logit_rows=logit_rows(config))
        kv = allocate_kv_cache(decoder.spec, 100, config.block_size, model_dtype=torch.bfloat16, device=torch.device("cpu"))
        fields = dict(max_num_seqs=70, max_model_len=256, max_draft=0, contiguous=False, seed=0, eos_token_ids=(2,), grammars=None)
        cuda_runner.CudaRunner(step, kv, graphs=True, **fields).capture()
print(*(f"not rehearsed: {kernel}" for kernel in seen - rehearsed), sep=chr(10))
print(len(seen), any("FLOAT16" in kernel for kernel in rehearsed))
"""


@pytest.mark.parametrize("kept", [None, (), ("0.mlp.down_proj", "1.self_attn.q_proj")])
def test_the_kernels_that_are_rehearsed_are_those_that_are_launched(
    tmp_path: Path, kept: tuple[str, ...] | None
) -> None:
    """The runner's own steps on tensors of a CPU, launches noted: of a dense model, of float8, of float8 with products kept dense."""
    save_tiny_llama(
        tmp_path, hidden_size=256, intermediate_size=512, head_dim=64, num_hidden_layers=3, max_position_embeddings=256
    )  # fmt: skip
    if kept is not None:
        to_eight_bits(tmp_path, torch.float8_e4m3fn, kept)
    environment = {**os.environ, "TRITON_INTERPRET": "0"}  # which tests/gpu sets in the same process
    done = subprocess.run(
        [sys.executable, "-c", _SAME, str(tmp_path)], env=environment, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *missed, last = done.stdout.split("\n")[:-1]
    assert [line for line in missed if line] == []
    count, long_prompts = last.split()
    assert int(count) >= 30
    assert long_prompts == str(kept is None), "gate and up of many dense rows have a kernel of their own"


def test_a_rehearsal_that_fails_keeps_nobody_waiting() -> None:
    from inferoptim.engine.rehearsal import Rehearsal

    child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])
    rehearsal = Rehearsal(child.pid)
    rehearsal.wait()
    assert rehearsal._over.is_set()
    child.wait()
