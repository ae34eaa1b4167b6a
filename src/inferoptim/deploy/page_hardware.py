"""The page of the platform team."""

from __future__ import annotations

from inferoptim.deploy.panels import INSTANCE, Dashboard, Need, Panel, Query, rate


def hardware() -> Dashboard:
    """For the platform team: processes, GPUs, energy."""
    gpu: tuple[Need, ...] = ("gpu",)
    dcgm: tuple[Need, ...] = ("dcgm",)
    engine = (
        Panel(
            "Engine busy",
            (Query(rate("inferoptim_engine_busy_seconds_total", "instance"), "{{instance}}"),),
            "percentunit",
            "Share of wall time inside a step.",
            maximum=1.0,
        ),
        Panel(
            "CPU",
            (
                Query(
                    rate("inferoptim_process_cpu_seconds_total", "instance, process"),
                    "{{process}} {{instance}}",
                ),
            ),
            "none",
            "Cores in use.",
        ),
        Panel(
            "Resident memory",
            (
                Query(
                    f"sum by (instance, process) (inferoptim_process_resident_memory_bytes{{{INSTANCE}}})",
                    "{{process}} {{instance}}",
                ),
            ),
            "bytes",
        ),
        Panel(
            "Open files",
            (
                Query(
                    f"sum by (instance, process) (inferoptim_process_open_fds{{{INSTANCE}}})",
                    "{{process}} {{instance}}",
                ),
            ),
            note="Rises with connections and must fall with them.",
        ),
        Panel(
            "KV-cache tokens",
            (
                Query(f"sum(inferoptim_kv_cache_used_tokens{{{INSTANCE}}})", "live"),
                Query(f"sum(inferoptim_kv_cache_capacity_tokens{{{INSTANCE}}})", "capacity"),
            ),
        ),
        Panel(
            "Engine deaths",
            (Query(f"sum by (instance) (inferoptim_engine_deaths_total{{{INSTANCE}}})", "{{instance}}"),),
        ),
    )
    gpus = (
        Panel(
            "Power",
            (Query(f"inferoptim_gpu_power_watts{{{INSTANCE}}}", "GPU {{gpu}} {{instance}}", gpu),),
            "watt",
        ),
        Panel(
            "Memory in use",
            (
                Query(
                    f"inferoptim_gpu_memory_used_bytes{{{INSTANCE}}} / inferoptim_gpu_memory_total_bytes{{{INSTANCE}}}",
                    "GPU {{gpu}} {{instance}}",
                    gpu,
                ),
            ),
            "percentunit",
            "High by design: the engine takes its KV memory at start. Look at the KV-cache instead.",
            maximum=1.0,
        ),
        Panel(
            "A kernel is running",
            (Query(f"inferoptim_gpu_utilization_ratio{{{INSTANCE}}}", "GPU {{gpu}} {{instance}}", gpu),),
            "percentunit",
            "Not how much of the GPU is used: one small kernel counts as 100 %.",
            maximum=1.0,
        ),
        Panel(
            "Energy per output token",
            (
                Query(
                    f"{rate('inferoptim_gpu_energy_joules_total')} / {rate('inferoptim_generation_tokens_total')}",
                    "J",
                    gpu,
                ),
            ),
            "joule",
        ),
        Panel(
            "Temperature (DCGM)",
            (Query("DCGM_FI_DEV_GPU_TEMP", "GPU {{gpu}} {{Hostname}}", dcgm),),
            "celsius",
        ),
        Panel(
            "SM clock (DCGM)",
            (Query("DCGM_FI_DEV_SM_CLOCK * 1e6", "GPU {{gpu}} {{Hostname}}", dcgm),),
            "hertz",
        ),
        Panel("Last Xid (DCGM)", (Query("DCGM_FI_DEV_XID_ERRORS", "GPU {{gpu}} {{Hostname}}", dcgm),)),
        Panel(
            "Tensor cores active (DCGM)",
            (Query("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", "GPU {{gpu}} {{Hostname}}", dcgm),),
            "percentunit",
            maximum=1.0,
        ),
    )
    return Dashboard(
        "inferoptim-hardware",
        "inferoptim · hardware",
        "Processes, memory, GPUs and energy of the servers.",
        (("Processes", engine), ("GPUs", gpus)),
    )
