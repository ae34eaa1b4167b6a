"""The page of whoever is on call."""

from __future__ import annotations

from inferoptim.deploy.panels import INSTANCE, JOB, RATE, Dashboard, Panel, Query, mean, quantiles, rate

_LATENCY = (
    (
        "Time to first token",
        "inferoptim_time_to_first_token_seconds",
        "Arrival to first token, queue included.",
    ),
    (
        "Inter-token latency",
        "inferoptim_inter_token_latency_seconds",
        "Each gap between two tokens of a sequence.",
    ),
    (
        "End to end",
        "inferoptim_e2e_request_latency_seconds",
        "Arrival to last token: depends on the answer's length.",
    ),
)


def service() -> Dashboard:
    """For whoever is on call: latency, throughput, queue, KV-cache, prefix hits, speculation."""
    up = (
        Panel(
            "Engine",
            (Query(f"min(inferoptim_engine_up{{{INSTANCE}}})"),),
            note="1: every engine has its model loaded.",
            kind="stat",
            width=4,
            height=4,
            thresholds=((0, "red"), (1, "green")),
        ),
        Panel(
            "Requests/s",
            (Query(rate("inferoptim_tenant_requests_total")),),
            "reqps",
            kind="stat",
            width=4,
            height=4,
        ),
        Panel(
            "Output tokens/s",
            (Query(rate("inferoptim_generation_tokens_total")),),
            kind="stat",
            width=4,
            height=4,
        ),
        Panel(
            "Waiting",
            (Query(f"sum(inferoptim_requests_waiting{{{INSTANCE}}})"),),
            kind="stat",
            width=4,
            height=4,
        ),
        Panel(
            "Slow to start, last hour",
            (Query(f"max(inferoptim:ttft_slow:ratio_rate1h{{{JOB}}})"),),
            "percentunit",
            "Share of requests beyond the TTFT objective; the fast burn pages at 14.4 times the error budget.",
            kind="stat",
            width=4,
            height=4,
        ),
        Panel(
            "5xx, last 5 minutes",
            (Query(f"max(inferoptim:errors:ratio_rate5m{{{JOB}}})"),),
            "percentunit",
            kind="stat",
            width=4,
            height=4,
            thresholds=((0, "green"), (0.02, "red")),
        ),
    )
    latency = tuple(Panel(title, quantiles(metric), "s", note) for title, metric, note in _LATENCY)
    parts = Panel(
        "Where the time goes (mean)",
        (
            mean("inferoptim_request_queue_time_seconds", "queue"),
            mean("inferoptim_request_prefill_time_seconds", "prefill"),
            mean("inferoptim_request_decode_time_seconds", "decode"),
        ),
        "s",
        "Queue + prefill is the time to first token; decode is the rest of the answer.",
        stack=True,
    )
    budget = Panel(
        "Share beyond the objective",
        (
            Query(f"inferoptim:ttft_slow:ratio_rate5m{{{JOB}}}", "TTFT, 5 min"),
            Query(f"inferoptim:ttft_slow:ratio_rate1h{{{JOB}}}", "TTFT, 1 h"),
            Query(f"inferoptim:e2e_slow:ratio_rate5m{{{JOB}}}", "E2E, 5 min"),
            Query(f"inferoptim:e2e_slow:ratio_rate1h{{{JOB}}}", "E2E, 1 h"),
        ),
        "percentunit",
        "The series that the burn-rate alerts compare with 14.4 and 6 times the error budget.",
    )
    answers = Panel(
        "Answers by status",
        (Query(rate("inferoptim_http_responses_total", "route, status"), "{{status}} {{route}}"),),
        "reqps",
    )
    tokens = Panel(
        "Tokens/s",
        (
            Query(rate("inferoptim_prompt_tokens_total"), "prompt"),
            Query(rate("inferoptim_prompt_tokens_cached_total"), "of these, from the prefix cache"),
            Query(rate("inferoptim_generation_tokens_total"), "generated"),
        ),
    )
    queue = Panel(
        "Sequences",
        (
            Query(f"sum(inferoptim_requests_running{{{INSTANCE}}})", "running"),
            Query(f"sum(inferoptim_requests_waiting{{{INSTANCE}}})", "waiting"),
        ),
    )
    ends = Panel(
        "Ends by reason",
        (Query(rate("inferoptim_requests_finished_total", "reason"), "{{reason}}"),),
        "reqps",
        stack=True,
    )
    kv = Panel(
        "KV-cache in use",
        (Query(f"max by (instance) (inferoptim_kv_cache_usage_ratio{{{INSTANCE}}})", "{{instance}}"),),
        "percentunit",
        "A full cache is no fault by itself; a full cache that preempts is.",
        maximum=1.0,
    )
    preempt = Panel(
        "Preemptions/s", (Query(rate("inferoptim_preemptions_total", "instance"), "{{instance}}"),), "ops"
    )
    prefix = Panel(
        "Prefix-cache hits",
        (
            Query(
                f"{rate('inferoptim_prefix_cache_hits_total')} / {rate('inferoptim_prefix_cache_queries_total')}",
                "share of prompt tokens",
            ),
        ),
        "percentunit",
        maximum=1.0,
    )
    batch = Panel(
        "Tokens a step",
        (
            Query(
                f"{rate('inferoptim_scheduled_tokens_total')} / {rate('inferoptim_engine_steps_total')}",
                "mean",
            ),
        ),
        note="Small: the batch is thin, and each token pays for reading all the weights.",
    )
    speculation = Panel(
        "Speculation: accepted drafts",
        (
            Query(
                f"{rate('inferoptim_spec_decode_accepted_tokens_total')} / {rate('inferoptim_spec_decode_draft_tokens_total')}",
                "share of draft tokens",
                ("speculation",),
            ),
        ),
        "percentunit",
        "Empty when speculation is off.",
        maximum=1.0,
    )
    lengths = Panel(
        "Prompt lengths",
        (
            Query(
                f"sum by (le) (increase(inferoptim_request_prompt_tokens_bucket{{{INSTANCE}}}[{RATE}]))",
                "{{le}}",
            ),
        ),
        kind="heatmap",
    )
    return Dashboard(
        "inferoptim-service",
        "inferoptim · service",
        "Latency, throughput, queue, KV-cache, prefix cache and speculation of the servers.",
        (
            ("Now", up),
            ("Latency", (*latency, parts, budget, answers)),
            ("Work", (tokens, queue, ends)),
            ("Engine", (kv, preempt, prefix, batch, speculation, lengths)),
        ),
    )
