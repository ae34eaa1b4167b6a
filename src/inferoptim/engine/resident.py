"""Memory that start-up used once goes back to the system (Linux, a CPU engine).

Two kinds: freed heap, which glibc keeps and which is as much as the weights; and pages of code that only importing and
loading ran through, over 80 MB of torch alone. Clean file pages are dropped from this process, not from the page
cache: what runs again is mapped again at the price of a minor fault.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

_MADV_DONTNEED = 4  # Source: Linux, include/uapi/asm-generic/mman-common.h
_CLEAN = ("r-xp", "r--p")


def return_freed_memory() -> None:
    """Give back freed heap, and code pages that may not be needed again. Does nothing where the system has no such call."""
    libc = ctypes.CDLL(None)
    trim, advise = getattr(libc, "malloc_trim", None), getattr(libc, "madvise", None)
    if trim is not None:  # another C library: it has no such call
        trim(0)
    if advise is not None:
        for start, size in _clean_file_mappings():
            # refused for a mapping that has changed meanwhile: then its pages stay
            advise(ctypes.c_void_p(start), ctypes.c_size_t(size), _MADV_DONTNEED)


def _clean_file_mappings() -> Iterator[tuple[int, int]]:
    """(address, bytes) of the read-only mappings of files of which this process holds no changed page.

    A changed page (a relocated table) would be lost: its mapping is left alone.
    """
    try:
        with open("/proc/self/smaps", encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:  # not Linux
        return
    start = end = 0
    clean = False
    for line in lines:
        words = line.split()
        if not words[0].endswith(":"):
            start, end = (int(address, 16) for address in words[0].split("-"))
            clean = words[1] in _CLEAN and len(words) > 5 and words[5].startswith("/")
        elif words[0] == "Anonymous:" and clean and words[1] == "0":
            yield start, end - start
