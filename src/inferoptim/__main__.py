"""`python -m inferoptim` is the same as `inferoptim`."""

from __future__ import annotations

import sys

from inferoptim.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
