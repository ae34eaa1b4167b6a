"""One worker process, seen from the parent: started fresh, asked over a pipe, buried when it dies or hangs.

Messages are pickled over an anonymous pipe between two processes of one user; nothing listens on a port. A second
pipe is the lifeline: the worker leaves as soon as it closes, so that no worker outlives the bench, however it ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from inferoptim import errors
from inferoptim.errors import EngineDeadError, InferOptimError

# not `-m`: classes of a module that runs as __main__ could not be unpickled here
_START = "from inferoptim.bench.worker import main; main()"
STOP_S = 5.0  # how long a worker may take to leave after it was told to


class WorkerProcess:
    """A fresh Python process that loads one target.

    Args:
        name: of the configuration, for messages.
        log: file that takes the worker's output; appended to.
        target: whose libraries it imports at once, before it is asked to load; '' = none.
    """

    def __init__(self, name: str, log: Path, target: str = "") -> None:
        self.name = name
        self._log = log
        self._connection, child = Pipe()
        lifeline, self._lifeline = os.pipe()
        try:
            with open(log, "ab") as output:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _START, str(child.fileno()), str(lifeline), target],
                    pass_fds=(child.fileno(), lifeline),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is the parent's to handle
                    env={**os.environ, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"},
                )
        finally:
            child.close()
            os.close(lifeline)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def call(self, method: str, *args: Any, timeout_s: float | None = None) -> Any:
        """Ask the worker and wait for its answer.

        Raises:
            EngineDeadError: it died, or did not answer within `timeout_s` (it is then killed).
            InferOptimError: what the worker's method raised, of the same class.
        """
        try:
            self._connection.send((method, args))
            if not self._connection.poll(timeout_s):
                self.kill()
                raise EngineDeadError(
                    f"no answer to {method!r} within {timeout_s:.0f} s: taken for a hang (deadline_s)"
                )
            kind, value = self._connection.recv()
        except (EOFError, OSError) as error:
            raise EngineDeadError(self._epitaph()) from error
        if kind == "ok":
            return value
        name, text = value
        known = getattr(errors, name, None)
        if isinstance(known, type) and issubclass(known, InferOptimError):
            raise known(text)
        raise EngineDeadError(f"{name}: {text} (traceback in {self._log.name})")

    def close(self) -> None:
        """Let it leave in peace; kill it if it does not."""
        self._drop_pipes()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it now."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # with the processes of its target
        self._process.wait()
        self._drop_pipes()

    def _drop_pipes(self) -> None:
        self._connection.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    def _epitaph(self) -> str:
        try:
            status = self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            status = self._process.returncode
        if status < 0:
            name = signal.Signals(-status).name
            hint = " (out of memory?)" if -status == signal.SIGKILL else ""
            return f"the worker process died with {name}{hint}; see {self._log.name}"
        return f"the worker process left with status {status}{self._last_words()}; see {self._log.name}"

    def _last_words(self) -> str:
        """The last line that it wrote: of an uncaught error, the error."""
        try:
            lines = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            return ""
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f" ({last[:200]})" if last else ""
