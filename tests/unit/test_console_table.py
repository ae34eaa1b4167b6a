"""Tables on narrow terminals, and what a terminal cannot print."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console

from inferoptim.cli.console_table import print_table

COLUMNS = ("offer", "mode of it", "per year", "seen")
ROWS = [
    ["aws-p5-capacity-block", "paid ahead, per block", "1,275,590", "2025-08-15"],
    ["vast-h100", "market", "9", "2025-08-15"],
]


@pytest.mark.parametrize("width", [40, 57, 60, 80, 120])
def test_no_figure_and_no_date_is_cut_and_nothing_is_wider_than_the_terminal(width: int) -> None:
    out = io.StringIO()
    print_table(Console(file=out, width=width), "Offers", COLUMNS, ROWS, (False, False, True, False))
    text = out.getvalue()
    assert "1,275,590" in text
    assert "2025-08-15" in text
    assert "aws-p5-capacity-block" in text
    assert max(map(len, text.splitlines())) <= width
    assert ("│" in text) == (width >= 57)
    assert ("┏" in text) == (width >= 60), "a frame, where it fits"


def test_a_row_that_ends_early_is_printed() -> None:
    out = io.StringIO()
    print_table(Console(file=out, width=80), "", ("a", "b", "c"), [["x", "no requests"]], (False, True, True))
    assert "no requests" in out.getvalue()


def test_signs_that_the_terminal_lacks_are_replaced() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "inferoptim", "claims", "1"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 holds with conditions" in done.stdout
