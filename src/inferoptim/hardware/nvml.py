"""What the NVIDIA driver says of itself and of its GPUs, without torch."""

from __future__ import annotations


def driver_and_names() -> tuple[str | None, list[str]]:
    """Driver version and GPU names as NVML tells them; (None, []) without NVML."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no package, no library, no driver: NVML raises its own classes
        return None, []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return str(pynvml.nvmlSystemGetDriverVersion()), [str(pynvml.nvmlDeviceGetName(h)) for h in handles]
    finally:
        pynvml.nvmlShutdown()
