"""The native step compiled for 64-bit ARM (NEON), run under emulation, beside the AVX2 one: the same logits to the bit.

The AVX2 step is held against kernels/reference.py by test_cpu_kernels.py. Not part of `make test`, since it compiles for
half a minute and needs two packages of the system:

    apt-get install g++-aarch64-linux-gnu qemu-user
    make arm
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from inferoptim.hardware.cpu import cpu_facts
from inferoptim.kernels.cpu import build

CASES = {  # kind and bits of the products (linear.h), type of the cache (native.py), activations in bfloat16
    "float32": (0, 0, 0, 0),
    "bfloat16": (1, 0, 1, 1),
    "int8, int8 cache": (2, 8, 2, 1),
    "int8, bfloat16 cache": (2, 8, 1, 1),
    "int8 weights alone": (3, 8, 0, 0),
    "4 bits in groups": (4, 4, 1, 1),
    "8 bits in groups, int8 cache": (4, 8, 2, 0),
}
TOOLS = ("aarch64-linux-gnu-g++", "qemu-aarch64", "g++")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    if missing := [name for name in TOOLS if shutil.which(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)} (apt-get install g++-aarch64-linux-gnu qemu-user)")
    avx2 = next(isa for isa in build.ISAS if isa.name == "avx2")
    if not avx2.needs <= set(cpu_facts().isa):
        pytest.skip("this processor has no AVX2")
    folder = tmp_path_factory.mktemp("arm")
    source = Path(__file__).with_name("step_logits.cpp")
    common = [flag for flag in build._FLAGS if flag not in ("-shared", "-fPIC")]
    common += ["-static", f"-I{Path(build.__file__).parent}", str(source)]
    for compiler, flags, name in ((TOOLS[0], (), "arm"), (TOOLS[2], avx2.flags, "avx2")):
        command = [compiler, *flags, *common, "-o", str(folder / name)]
        subprocess.run(command, check=True, timeout=250, capture_output=True)
    return {"arm": [TOOLS[1], str(folder / "arm")], "avx2": [str(folder / "avx2")]}


@pytest.mark.parametrize("case", CASES)
def test_arm_computes_what_avx2_does(programs: dict[str, list[str]], case: str) -> None:
    """A prompt of 150 tokens on two threads, then one token: no bit differs, since both fuse multiply and add."""
    logits = {
        name: subprocess.run(
            [*command, *map(str, CASES[case])], check=True, timeout=100, capture_output=True, text=True
        ).stdout
        for name, command in programs.items()
    }
    values = [float(line) for line in logits["avx2"].split()]
    assert len(values) == 151 * 75
    assert max(values) - min(values) > 1  # neither zeros nor NaN
    assert logits["arm"] == logits["avx2"]
