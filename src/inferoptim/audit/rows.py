"""What every reader yields: columnar batches of requests, and the rows that could not be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_LENGTH = 1 << 22  # tokens; no model has such a context, so a larger length is a broken row
UNKNOWN = -1  # a length that the trace does not state

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that could not be read. The text itself is never kept."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Turn:
    """The text of one request. Lives only while its batch is processed."""

    prompt: str  # everything that the model reads, messages joined
    output: str
    system: str = ""  # the leading system message, part of `prompt`
    examples: str = ""  # messages between the system's and the last one, where an assistant's is among them
    last: str = ""  # the last user message, which tells the language
    turn: int = 0  # user messages so far; 0 = not a chat


@dataclass(slots=True)
class Batch:
    """Some consecutive rows. All arrays have one entry per row; a column the trace lacks is None."""

    prompt_tokens: Ints  # UNKNOWN where only text is given
    output_tokens: Ints
    arrival_s: Floats | None = None  # Unix time, or seconds from the trace's own zero
    duration_s: Floats | None = None  # arrival to last token; nan = not stated
    ttft_s: Floats | None = None
    failed: Bools | None = None
    truncated: Bools | None = None  # ended because of a length limit
    session: Ints | None = None  # salted hash; 0 = none
    turns: Ints | None = None  # which turn of its conversation this request is, from 1; 0 = not known
    blocks: list[Ints] | None = None  # ids of the leading prompt blocks: equal id = equal prefix up to there
    texts: Sequence[Turn | None] | None = None
    bad: list[BadRow] = field(default_factory=list)
    bytes_read: int = 0  # of the source so far, for progress

    def __len__(self) -> int:
        return len(self.prompt_tokens)

    def select(self, keep: Bools) -> Batch:
        """The rows where `keep` [n] is True; bad rows are kept as they are."""
        if keep.all():
            return self

        def cut(column: Any) -> Any:
            if column is None or isinstance(column, np.ndarray):
                return None if column is None else column[keep]
            return [column[i] for i in np.flatnonzero(keep)]

        return replace(
            self,
            **{
                f.name: cut(getattr(self, f.name))
                for f in fields(self)
                if f.name not in ("bad", "bytes_read")
            },
        )
