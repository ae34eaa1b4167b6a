"""API keys: who calls. Comparison takes the same time whichever key is right, and whether one is."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from inferoptim.errors import ConfigError

_MIN_KEY_CHARS = 16


class ApiKeys:
    """Names by key. Keys are kept as digests only."""

    def __init__(self, keys: dict[str, str]) -> None:
        self._digests = [(name, _digest(key)) for name, key in keys.items()]

    def name_of(self, authorization: str | None) -> str | None:
        """The name behind an Authorization header, or None when it is missing or wrong."""
        scheme, _, key = (authorization or "").partition(" ")
        digest = _digest(key.strip())
        found = None
        for name, known in self._digests:  # all of them, always
            if hmac.compare_digest(digest, known):
                found = name
        return found if scheme.lower() == "bearer" else None


def read_keys(path: Path) -> ApiKeys:
    """Read a file of lines ``name:key``; blank lines and those that start with # are skipped.

    Raises:
        ConfigError: the file cannot be read, holds no key, a name twice, or a key too short to be a secret.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    keys: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, colon, key = (part.strip() for part in line.partition(":"))
        where = f"{path}, line {number}"
        if not colon or not name or not key:
            raise ConfigError(f"{where}: write name:key")
        if name in keys:
            raise ConfigError(f"{where}: the name {name!r} stands there twice")
        if len(key) < _MIN_KEY_CHARS:
            raise ConfigError(f"{where}: a key needs at least {_MIN_KEY_CHARS} characters")
        if key in keys.values():
            raise ConfigError(f"{where}: this key has two names")
        keys[name] = key
    if not keys:
        raise ConfigError(f"{path}: no key in it; write lines name:key")
    return ApiKeys(keys)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
