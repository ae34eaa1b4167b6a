"""The page of the FinOps lead."""

from __future__ import annotations

from inferoptim.deploy.panels import (
    CACHED,
    DECODE,
    INSTANCE,
    JOB,
    PREFILL,
    PROMPT,
    Dashboard,
    Need,
    Panel,
    Query,
    rate,
)


def finops() -> Dashboard:
    """For the FinOps lead: what a million tokens cost, who pays, what idles."""
    price: tuple[Need, ...] = ("price",)
    now = (
        Panel(
            "Price, USD/h",
            (Query(f"sum(inferoptim_price_usd_per_hour{{{INSTANCE}}})", needs=price),),
            "currencyUSD",
            "As stated with --usd-per-hour.",
            "stat",
            6,
            4,
        ),
        Panel(
            "Million output tokens, all in",
            (
                Query(
                    f"1e6 * {rate('inferoptim_wall_cost_usd_total')} / {rate('inferoptim_generation_tokens_total')}",
                    needs=price,
                ),
            ),
            "currencyUSD",
            "Whole machine, idle time included, over generated tokens.",
            "stat",
            6,
            4,
        ),
        Panel(
            "Idle share",
            (
                Query(
                    f"{rate('inferoptim_idle_cost_usd_total')} / {rate('inferoptim_wall_cost_usd_total')}",
                    needs=price,
                ),
            ),
            "percentunit",
            "Cost of the time that no request used.",
            "stat",
            6,
            4,
        ),
        Panel(
            "Spent in this range",
            (Query(f"sum(increase(inferoptim_wall_cost_usd_total{{{INSTANCE}}}[$__range]))", needs=price),),
            "currencyUSD",
            "",
            "stat",
            6,
            4,
        ),
    )
    cost = (
        Panel(
            "Million tokens over time",
            (
                Query(
                    f"inferoptim:cost_per_million_output_tokens:usd_rate1h{{{JOB}}}",
                    "output, all in, 1 h",
                    price,
                ),
                Query(
                    f"1e6 * {rate('inferoptim_cost_usd_total', labels=DECODE)} / {rate('inferoptim_generation_tokens_total')}",
                    "output, engine time only",
                    price,
                ),
                Query(
                    f"1e6 * {rate('inferoptim_cost_usd_total', labels=PREFILL)} / {rate('inferoptim_prompt_tokens_total')}",
                    "input, engine time only",
                    price,
                ),
            ),
            "currencyUSD",
            "The distance between the two output lines is what idle time costs.",
            width=12,
        ),
        Panel(
            "Where the money goes, USD/h",
            (
                Query(f"3600 * {rate('inferoptim_cost_usd_total', 'phase')}", "{{phase}}", price),
                Query(f"3600 * {rate('inferoptim_idle_cost_usd_total')}", "idle", price),
            ),
            "currencyUSD",
            width=12,
            stack=True,
        ),
    )
    tenants = (
        Panel(
            "Cost by tenant, USD/h",
            (Query(f"3600 * {rate('inferoptim_cost_usd_total', 'tenant')}", "{{tenant}}", price),),
            "currencyUSD",
            "Measured engine time; tokens found in the prefix cache cost nothing.",
            stack=True,
        ),
        Panel(
            "Million tokens by tenant",
            (
                Query(
                    f"avg by (tenant, direction) (inferoptim_cost_per_million_tokens_usd{{{INSTANCE}}})",
                    "{{tenant}} {{direction}}",
                    price,
                ),
            ),
            "currencyUSD",
            "Since the server started, engine time only.",
        ),
        Panel(
            "Tokens by tenant",
            (Query(rate("inferoptim_tenant_tokens_total", "tenant, kind"), "{{tenant}} {{kind}}"),),
        ),
        Panel(
            "Bill of this range",
            (
                Query(
                    f"sum by (tenant) (increase(inferoptim_cost_usd_total{{{INSTANCE}}}[$__range]))",
                    "{{tenant}}",
                    price,
                ),
            ),
            "currencyUSD",
            kind="table",
        ),
        Panel(
            "Prompt tokens that the prefix cache saved",
            (
                Query(
                    f"{rate('inferoptim_tenant_tokens_total', 'tenant', CACHED)}"
                    f" / {rate('inferoptim_tenant_tokens_total', 'tenant', PROMPT)}",
                    "{{tenant}}",
                ),
            ),
            "percentunit",
            maximum=1.0,
        ),
        Panel(
            "Energy, USD/h",
            (Query(f"3600 * {rate('inferoptim_energy_cost_usd_total')}", "energy", ("gpu", "energy_price")),),
            "currencyUSD",
            "Measured by the GPU, at the price stated with --usd-per-kwh; part of the machine's price unless that excludes power.",
        ),
    )
    return Dashboard(
        "inferoptim-finops",
        "inferoptim · FinOps",
        "Cost per million tokens, by tenant and phase, and what idle time costs.",
        (("Now", now), ("Cost", cost), ("Tenants", tenants)),
        ("inferoptim", "finops"),
    )
