"""The example pipeline in docs/ci.md: YAML that parses, with commands and options that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import yaml
from typer.main import get_command

from inferoptim.cli.main import app

PAGE = Path(__file__).parents[2] / "docs" / "ci.md"


def test_the_pipeline_parses_and_names_real_options() -> None:
    block = re.search(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert block
    pipeline = yaml.safe_load(block.group(1))
    steps = pipeline["jobs"]["artefact"]["steps"]
    assert all(len({"uses", "run"} & set(step)) == 1 for step in steps)
    commands = [shlex.split(step["run"]) for step in steps if step.get("run", "").startswith("inferoptim")]
    assert [c[1] for c in commands] == ["build", "compare"]
    group = get_command(app)
    for words in commands:
        command = group.get_command(None, words[1])  # type: ignore[attr-defined]
        known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
        assert {word for word in words[2:] if word.startswith("--")} <= known
