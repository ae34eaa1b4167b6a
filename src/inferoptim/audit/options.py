"""What the caller decides about reading a trace."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ReadOptions:
    """Options of every reader."""

    map: Mapping[str, str] = field(default_factory=dict)  # our field → column, from --map
    time_unit: str | None = None  # of numeric times
    timezone: str | None = None  # IANA zone of dates that state none
    salt: bytes = field(
        default_factory=lambda: secrets.token_bytes(16)
    )  # of every hash; not written anywhere

    def hash(self, text: str | bytes) -> int:
        """63-bit salted hash, never 0; without the salt it says nothing about the text."""
        data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        digest = hashlib.blake2b(data, digest_size=8, key=self.salt).digest()
        return (int.from_bytes(digest, "little") >> 1) or 1
