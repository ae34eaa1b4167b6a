"""The claims as one self-contained HTML page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from inferoptim.economics.claims.model import Verdict
from inferoptim.economics.page import document, escape

MARK = {
    Verdict.HOLDS.value: "ok",
    Verdict.CONDITIONS.value: "mid",
    Verdict.WRONG.value: "bad",
    Verdict.NOT_MEASURED.value: "none",
}

STYLE = """
main{max-width:74rem}
.count{display:flex;flex-wrap:wrap;gap:.5rem 1.25rem;margin:1rem 0 2rem;padding:0;list-style:none;color:var(--muted)}
.count b{color:var(--ink);font-variant-numeric:tabular-nums}
.row{display:grid;grid-template-columns:3rem minmax(0,1fr) minmax(0,1.5fr);gap:.25rem 1.5rem;padding:1rem 0;border-top:1px solid var(--line)}
.row .n{color:var(--muted);font-variant-numeric:tabular-nums}
.row .says{font-weight:600}.row small{display:block;color:var(--muted);font-weight:400}
.row p{margin:.35rem 0 0}.row .here{color:var(--muted)}
.tag{display:inline-block;font-size:.8rem;padding:.05rem .5rem;border-radius:1rem;border:1px solid currentColor;white-space:nowrap}
.ok{color:var(--good)}.mid{color:var(--warn)}.bad{color:var(--bad)}.none{color:var(--muted)}
@media(max-width:44rem){.row{grid-template-columns:2rem minmax(0,1fr)}.row>div:last-child{grid-column:2}}
"""


def claims_page(rows: Sequence[Mapping[str, Any]], run: str = "") -> str:
    """The rows of `examine_all` as a page; no script, no network."""
    counts = Counter(row["verdict"] for row in rows)
    summary = "".join(
        f'<li><span class="tag {MARK[v.value]}">{v.value}</span> <b>{counts.get(v.value, 0)}</b></li>'
        for v in Verdict
    )
    lines = []
    for row in rows:
        here = row["measured_here"]
        lines.append(
            f'<section class="row" id="claim-{row["number"]}"><div class="n">{row["number"]}</div>'
            f'<div class="says">{escape(row["claim"])}<small>guide {escape(row["place"])} · check {escape(row["check"])}</small></div>'
            f'<div><span class="tag {MARK[row["verdict"]]}">{escape(row["verdict"])}</span>'
            f'<p>{escape(row["statement"])}</p><p class="here">On this machine: {escape(here)}</p></div></section>'
        )
    source = (
        f"Measured values: {escape(run)}."
        if run
        else "No bench run was given: values to measure read “not measured”."
    )
    body = (
        "<main><h1>What the guide claims, checked</h1>"
        f"<p>Every figure of the guide with the verdict of a function that recomputes it. {source}</p>"
        f'<ul class="count">{summary}</ul>{"".join(lines)}</main>'
    )
    return document("What the guide claims, checked", body, STYLE)
