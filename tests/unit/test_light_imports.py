"""What must start in a blink imports nothing heavy: the package, the command's help, and the rooms without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "scipy", "transformers", "matplotlib", "polars", "huggingface_hub", "fastapi")


def imported_by(code: str) -> set[str]:
    """Heavy packages in memory after `code`."""
    check = f"\nimport sys\nprint('HEAVY', *(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code + check], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].removeprefix("HEAVY").split())


@pytest.mark.parametrize(
    "code",
    [
        "import inferoptim; inferoptim.__version__",
        "from inferoptim.cli.main import main; main(['--help'])",
        "from inferoptim.cli.main import main; main(['--version'])",
        "from inferoptim.cli.main import main; main(['bench', '--help'])",
        "from inferoptim import SamplingParams, EngineConfig",
        "import inferoptim.engine.scheduler, inferoptim.engine.blocks, inferoptim.engine.prefix_cache",
        "import inferoptim.engine.opening",
    ],
)
def test_nothing_heavy_is_imported(code: str):
    assert imported_by(code) == set()


def test_the_public_names_are_there():
    import inferoptim

    for name in inferoptim.__all__:
        assert getattr(inferoptim, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'LMM'"):
        _ = inferoptim.LMM


def test_the_main_job_needs_no_other_extra():
    """`make bench` installs the extra `bench` alone; a developer's environment has them all, and hides it."""
    from inferoptim.cli.main import EXTRA_OF_MODULE

    others = sorted(module for module, extra in EXTRA_OF_MODULE.items() if extra != "bench")
    code = f"import sys; sys.modules.update(dict.fromkeys({others!r}))\n"  # None: importing it fails
    code += "import inferoptim.cli.bench, inferoptim.cli.report, inferoptim.bench.worker, inferoptim.bench.protocol\n"
    code += "import inferoptim.bench.gate, inferoptim.bench.summary, inferoptim.targets.engine, inferoptim.targets.transformers\n"
    code += "import inferoptim.report.write_report, inferoptim.cli.doctor, inferoptim.cli.cost, inferoptim.cli.build\n"
    subprocess.run([sys.executable, "-c", code], check=True)
