"""How long `inferoptim audit` takes over 10^5 … 10^7 rows, and its peak memory, beside polars reading the same columns.

    python -m benchmarks.audit.rows [--rows 100000 1000000 10000000] [--keep FOLDER]

The trace is made first (Azure's columns: timestamp, prompt and output tokens; lognormal lengths, gamma gaps). Each audit runs
in a process of its own, so that its peak memory is its own. Two floors stand beside it: reading the bytes, and polars
parsing the three columns (its streaming engine) without any statistics but a mean.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

TARGET_S, TARGET_GIB = 20.0, 1.5  # for 10^7 rows on 2 cores

PEER = """
import sys, polars as pl
frame = pl.scan_csv(sys.argv[1], schema_overrides={"TIMESTAMP": pl.String})
time = pl.col("TIMESTAMP").str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us")
print(frame.select(time.max(), pl.col("ContextTokens").mean(), pl.col("GeneratedTokens").mean()).collect(engine="streaming"))
"""


def make_trace(path: Path, rows: int) -> None:
    """Write a trace in pieces; the same bytes for one size."""
    import polars as pl

    rng = np.random.default_rng(0)
    start, done = np.datetime64("2024-05-10T00:00:00", "us"), 0
    clock = 0.0
    with open(path, "wb") as file:
        while done < rows:
            n = min(1_000_000, rows - done)
            times = clock + np.cumsum(rng.gamma(0.5, 0.04, n))
            clock = float(times[-1])
            frame = pl.DataFrame(
                {
                    "TIMESTAMP": start + (times * 1e6).astype("timedelta64[us]"),
                    "ContextTokens": np.clip(rng.lognormal(6.5, 1.2, n), 1, 100_000).astype(np.int64),
                    "GeneratedTokens": np.clip(rng.lognormal(4.5, 1.0, n), 1, 8000).astype(np.int64),
                }
            ).with_columns(pl.col("TIMESTAMP").dt.strftime("%Y-%m-%d %H:%M:%S%.6f0"))
            frame.write_csv(file, include_header=done == 0)
            done += n


def run(command: list[str]) -> tuple[float, float]:
    """(seconds, peak GiB) of one process."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        _, status, usage = os.wait4(process.pid, 0)
        elapsed = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(process.stderr.read().decode() if process.stderr else "failed")
    return elapsed, usage.ru_maxrss / 2**20


def read_s(path: Path) -> float:
    """Seconds to read the file's bytes, cached as they are for the audit."""
    started = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        while file.read(8 << 20):
            pass
    return time.perf_counter() - started


def main() -> None:
    """Print one line a size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--keep", type=Path, help="folder for the traces; default: a temporary one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        print(f"{os.cpu_count()} cores; python {sys.version.split()[0]}")
        print("      rows   file MiB   audit s   rows/s   peak GiB   polars parse s   peak GiB   read s")
        for rows in args.rows:
            path = folder / f"trace-{rows}.csv"
            if not path.exists():
                make_trace(path, rows)
            reading = read_s(path)
            peer_s, peer_gib = run([sys.executable, "-c", PEER, str(path)])
            audit_s, audit_gib = run([sys.executable, "-m", "inferoptim", "audit", str(path), "--json"])
            print(
                f"{rows:>10,} {path.stat().st_size / 2**20:>10.0f} {audit_s:>9.2f} {rows / audit_s:>8,.0f} {audit_gib:>10.2f} "
                f"{peer_s:>16.2f} {peer_gib:>10.2f} {reading:>8.2f}"
            )
            if rows == 10_000_000:
                met = audit_s <= TARGET_S and audit_gib <= TARGET_GIB
                print(f"target for 10^7: {TARGET_S:.0f} s and {TARGET_GIB} GiB: {'met' if met else 'MISSED'}")


if __name__ == "__main__":
    main()
