"""The example pipeline in docs/ci.md: YAML that parses, with commands and options that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from inferoptim.cli.main import main

PAGE = Path(__file__).parents[2] / "docs" / "ci.md"


def test_the_pipeline_parses_and_names_real_options(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    block = re.search(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert block
    pipeline = yaml.safe_load(block.group(1))
    steps = pipeline["jobs"]["artefact"]["steps"]
    assert all(len({"uses", "run"} & set(step)) == 1 for step in steps)
    commands = [shlex.split(step["run"]) for step in steps if step.get("run", "").startswith("inferoptim")]
    assert [c[1] for c in commands] == ["build", "compare"]
    for words in commands:
        capsys.readouterr()
        assert main([words[1], "--help"]) == 0
        shown = capsys.readouterr().out
        for option in (word for word in words[2:] if word.startswith("--")):
            assert re.search(rf"{option}\b", shown), f"{words[1]} has no {option}"
