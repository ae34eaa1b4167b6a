"""Ctrl-C while a package is being imported comes when that import is over.

An import of torch runs Python code from C that forgets whatever exception it ends with. A Ctrl-C that falls there would be
lost, and the command would go on.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

_AGAIN_S = 0.05
_IMPORT = "<frozen importlib._bootstrap>"


def defer_while_importing() -> None:
    """Take over Ctrl-C, unless somebody has already chosen what it means (a shell's background job ignores it)."""
    here = threading.current_thread() is threading.main_thread()
    if here and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(_number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT:
            signal.signal(signal.SIGALRM, _interrupt)
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
            return
        frame = frame.f_back
    raise KeyboardInterrupt
