"""Kernels compiled before a GPU is asked for anything: without one, as far as files in Triton's cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import save_tiny_llama

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
folder = Path(sys.argv[1])
fields = {"max_model_len": 48, "max_num_seqs": 3, "max_num_batched_tokens": 600, "kv_budget_bytes": 1 << 20}
config = EngineConfig.create(model=sys.argv[1], **fields)
with precompile.collecting((9, 0)) as jobs:
    launch_everything(read_spec(folder), config, torch.bfloat16, "fp8")
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


def test_a_rehearsal_that_fails_keeps_nobody_waiting() -> None:
    from inferoptim.engine.rehearsal import Rehearsal

    child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])
    rehearsal = Rehearsal(child.pid)
    rehearsal.wait()
    assert rehearsal._over.is_set()
    child.wait()
