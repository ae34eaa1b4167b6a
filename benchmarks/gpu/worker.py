"""One unit of work in a fresh process: `python -m benchmarks.gpu.worker JOB.json RESULT.json`."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

LIMIT = "INFEROPTIM_JOB_LIMIT_S"  # seconds until the process is killed
_NEARLY = 0.95  # of them: then the log gets to know where every thread is


def do(job: dict[str, Any]) -> dict[str, Any]:
    import torch

    kind = job.pop("kind")
    if kind == "kernels":
        from inferoptim.kernels.triton import selfcheck

        device = torch.device("cuda", 0)
        outcomes = selfcheck.run(
            device, (getattr(torch, job["dtype"]),), seed=job["seed"], checks=(job["check"],),
            fp8=torch.cuda.get_device_capability(device) >= (8, 9), small=job.get("small", False),
        )  # fmt: skip
        return {
            "checked": len(outcomes),
            "failed": [
                f"{o.name}: error {o.error:.2g}, limit {o.limit:.2g}" for o in outcomes if not o.passed
            ],
            "worst": max(o.error for o in outcomes),
        }
    if kind == "agreement":
        from benchmarks.gpu.agreement import compare

        return compare(job["case"])
    if kind == "speed":
        from benchmarks.gpu.shapes import Case, Ceilings
        from benchmarks.gpu.speed import measure

        return measure(
            job["model"], job["precision"], [Case.parse(c) for c in job["cases"]], job["repeats"],
            Ceilings(**job["ceilings"]), job["profile"], **job["fields"],
        )  # fmt: skip
    if kind == "call":  # a function of one of this package's modules
        module = import_module(f"benchmarks.gpu.{job['module']}")
        result: Any = getattr(module, job["function"])(**job["arguments"])
        return result if isinstance(result, dict) else {"result": result}
    if kind == "ceilings":
        from inferoptim.hardware.measure_cuda import measure as ceilings

        found = ceilings(1, lambda what: None)
        return {"reads_bytes_per_s": found.reads_bytes_per_s, "gemm_flops_per_s": found.gemm_flops_per_s}
    raise ValueError(kind)


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    if LIMIT in os.environ:
        faulthandler.dump_traceback_later(float(os.environ[LIMIT]) * _NEARLY)
    try:
        result = do(job)
    except Exception as error:
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {error}"}
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
