"""Ctrl-C in the middle of an import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PACKAGE = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    sum(range(10))  # the interrupt would come here, and be forgotten as an import from C forgets it
except BaseException:
    pass
imported = True
"""

PROGRAM = """
import signal, sys
from inferoptim.cli.interrupt import defer_while_importing
defer_while_importing()
try:
    import forgetful
    while True:
        signal.pause()
except KeyboardInterrupt:
    sys.exit(3 if forgetful.imported else 4)
"""


def test_it_comes_when_the_import_is_over(tmp_path: Path) -> None:
    (tmp_path / "forgetful.py").write_text(PACKAGE)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**os.environ, "PYTHONPATH": path}, timeout=60, check=False
    )
    assert done.returncode == 3
