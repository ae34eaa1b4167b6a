"""The engines of the comparison as processes: started, asked, ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cpu import convert
from benchmarks.cpu.cases import Case
from inferoptim.models.hub import ModelFiles

ROOT = Path(__file__).resolve().parents[2]
LOOKUP_TOKENS = 10  # proposals at most: the engine takes fewer where fewer pay


class Skipped(Exception):
    """This engine does not run here; the message says why in one line."""


@dataclass(frozen=True)
class Run:
    """What one engine did with one case, once."""

    total_s: float
    first_s: float | None  # None: this engine does not say
    tokens: tuple[tuple[int, ...], ...]


class Engine:
    """A worker process. Use `ask` as often as wanted, then `close`.

    Args:
        name: as printed.
        module: `engine_<module>.py`.
        python: interpreter that has the engine's packages.
        options: for the engine's `load`.

    Raises:
        Skipped: its packages are missing, or it did not start.
    """

    def __init__(self, name: str, module: str, python: Path, options: dict[str, Any]) -> None:
        self.name = name
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "HF_HUB_OFFLINE": "1"}
        if python != Path(sys.executable):
            env["PYTHONPATH"] = str(ROOT)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `close`; a pipe that nobody reads would stop it)
        self._process = subprocess.Popen(
            [str(python), "-m", "benchmarks.cpu.worker", module, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=ROOT,
            env=env,
        )
        hello = self._read()
        if "missing" in hello:
            self.close()
            raise Skipped(f"{hello['missing']}; `make peers` installs it")
        self.info: dict[str, Any] = hello["info"]

    def ask(self, case: Case) -> Run:
        """Run a case.

        Raises:
            Skipped: the process ended, or gave another number of tokens than asked for.
        """
        assert self._process.stdin is not None
        total, first, tokens = 0.0, 0.0, []
        for request in case.requests():
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._read()
            total += answer["total_s"]
            first += answer["first_s"]
            tokens += [tuple(t) for t in answer["tokens"]]
        if [len(t) for t in tokens] != [case.output_tokens] * len(case.prompts):
            raise Skipped(
                f"gave {[len(t) for t in tokens]} tokens on {case.name}: a wrong output has no speed"
            )
        return Run(total, first or None, tuple(tokens))

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.communicate()
            self._errors.seek(0)
            last = self._errors.read().strip().splitlines()
            raise Skipped(last[-1] if last else f"ended with status {self._process.returncode}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def start(name: str, files: ModelFiles, python: Path, threads: int, sequences: int, longest: int) -> Engine:
    """Start an engine by its printed name.

    Raises:
        Skipped: it cannot run here, and why.
    """
    own = Path(sys.executable)
    if name.startswith("ours"):
        config: dict[str, Any] = {"quantization": "int8", "num_threads": threads, "max_num_seqs": sequences}
        if "int4" in name:
            config["quantization"] = "int4"
        if "kv8" in name:
            config["kv_quantization"] = "int8"
        if "lookup" in name:
            config["speculative"] = "prompt-lookup"
            config["num_speculative_tokens"] = LOOKUP_TOKENS
        return Engine(name, "ours", own, {"model": str(files.folder), "config": config})
    if name.startswith("transformers"):
        return Engine(name, "transformers", own, {"model": str(files.folder), "threads": threads})
    if not python.exists():
        raise Skipped(f"{python} does not exist; `make peers` makes it")
    kind = name.split()[-1]
    try:
        if name.startswith("llama.cpp"):
            if not _has(python, "llama_cpp"):
                raise Skipped("llama-cpp-python is not installed; `make peers` installs it")
            options = {
                "gguf": str(convert.gguf_file(files, kind, python, threads)),
                "context_tokens": sequences * longest,
            }
            module = "llamacpp"
        else:
            if not _has(python, "openvino_genai"):
                raise Skipped("openvino-genai is not installed; `make peers` installs it")
            options = {"folder": str(convert.openvino_folder(files, kind, python))}
            module = "openvino"
    except convert.ConvertError as error:
        raise Skipped(str(error)) from error
    return Engine(
        name, module, python, {**options, "precision": kind, "threads": threads, "max_sequences": sequences}
    )


def _has(python: Path, module: str) -> bool:
    probe = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([str(python), "-c", probe], check=False).returncode == 0
