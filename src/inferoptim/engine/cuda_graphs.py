"""CUDA graphs over a ladder of sizes: a step of n rows replays the graph of the next size up."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import torch


def ladder(most: int, step: int = 1) -> list[int]:
    """Batch sizes to capture, up to and including `most`: dense where a row more is felt, sparse above.

    Args:
        step: every size but the last is a multiple of it.
    """
    sizes = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256]
    sizes += [*range(320, 1025, 64), *range(1152, most, 128)]
    kept = {size for size in sizes if size < most and size % step == 0}
    return sorted(kept | {most})


class GraphLadder:
    """Graphs of one piece of work at several sizes.

    Args:
        sizes: ascending.
        work: does the work for one of the sizes on static memory; captured as it runs.
        pool: memory that graphs of several ladders share: they never run at the same time.
    """

    def __init__(self, sizes: list[int], work: Callable[[int], Any], pool: Any) -> None:
        self._sizes = sizes
        self._work = work
        self._pool = pool
        self._graphs: dict[int, tuple[Any, Any]] = {}

    def size_for(self, n: int) -> int | None:
        """The smallest size that holds n; None when there is none."""
        at = bisect_left(self._sizes, n)
        return self._sizes[at] if at < len(self._sizes) else None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Every size, ascending."""
        return tuple(self._sizes)

    def ready(self, size: int) -> bool:
        """Whether the graph of `size` is captured."""
        return size in self._graphs

    def capture(self, size: int) -> None:
        """Capture one size. The work runs once before that, for real: its inputs must be such that this harms nobody."""
        self._work(size)  # compiles kernels and makes library handles, which a capture must not
        torch.cuda.synchronize()
        graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = self._work(size)
        self._graphs[size] = (graph, result)

    def replay(self, size: int) -> Any:
        """Run the graph of `size`; what its work returned when it was captured (static tensors)."""
        graph, result = self._graphs[size]
        graph.replay()
        return result
