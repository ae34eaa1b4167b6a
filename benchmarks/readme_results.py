"""Write the CPU results of README.md and README.fr.md from the records of a run, so that no figure is copied by hand.

    python benchmarks/readme_results.py results/quick-20261124-104128 [--picture]

Replaces what stands between the two `cpu-results` comments: the ladder, workload by workload, and the report's own findings.
`--picture` also takes docs/images/report.png of the run's report (headless chromium).
"""

from __future__ import annotations

import argparse
import re
import subprocess
from pathlib import Path

from inferoptim.report.facts import Facts, Rung, read_facts, rung_label, usable
from inferoptim.report.language import Cell, Language, LanguageCode
from inferoptim.report.load import load_records
from inferoptim.report.markdown import escape_markdown
from inferoptim.report.verdict import verdict
from inferoptim.report.waits import kv_note

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- cpu-results[^>]*-->\n).*?(\n<!-- /cpu-results -->)", re.DOTALL)
INTRO: dict[LanguageCode, str] = {
    "en": (
        "**{cores} CPU cores** ({cpu}; torch {torch}, transformers {transformers}), `make bench` with {model}, {date}, commit "
        "{commit}: {n} configurations measured in {minutes}, 95 % intervals."
    ),
    "fr": (
        "**{cores} cœurs de CPU** ({cpu} ; torch {torch}, transformers {transformers}), `make bench` avec {model}, le {date}, commit "
        "{commit} : {n} configurations mesurées en {minutes}, intervalles à 95 %."
    ),
}
HEADS: dict[LanguageCode, tuple[str, str, str]] = {
    "en": ("configuration", "tokens/s, {case}", "× transformers, static batch"),
    "fr": ("configuration", "tokens/s, {case}", "× transformers, lots statiques"),
}


def block(facts: Facts, code: LanguageCode) -> str:
    """What the README says of this run, in Markdown."""
    language = Language(code)
    env = facts.run.folder.environment
    assert env is not None, "a run without its environment"
    took = max(r.started_at_s + r.wall_s for r in facts.run.folder.runs)
    lines = [
        INTRO[code].format(
            cores=env.cores,
            cpu=env.cpu,
            torch=env.versions.get("torch", "?"),
            transformers=env.versions.get("transformers", "?"),
            model=env.model,
            date=(env.started_at or "")[:10],
            commit=(env.git_commit or "?")[:7],
            n=len(facts.rungs),
            minutes=f"{int(took // 60)} min {int(took % 60)} s",
        ),
        "",
    ]
    if note := kv_note(facts, language):
        lines += [note, ""]
    name, rate, ratio = HEADS[code]
    heads = [name]
    for case in facts.cases:
        heads += [rate.format(case=case.name), ratio]
    lines += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for rung in facts.rungs:
        cells = [rung_label(rung, language)]
        for case in facts.cases:
            cells += _figures(rung, facts, case.name, language)
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    lines += [f"- {escape_markdown(finding)}" for finding in verdict(facts, language).findings]
    return "\n".join(lines)


def _figures(rung: Rung, facts: Facts, case_name: str, language: Language) -> list[str]:
    case = next(c for c in facts.cases if c.name == case_name)
    metric = case.metrics.get(rung.id)
    if metric is None:
        return [language("not_measured"), ""]
    ratio = "1" if rung is facts.baseline else _text(language.times_cell(usable(metric.speedup_vs_baseline)))
    return [_text(language.unit_cell(usable(metric.output_tokens_per_s))), ratio]


def _text(cell: Cell) -> str:
    return f"{cell.value} ({cell.interval})" if cell.interval else cell.value


def main() -> None:
    """Rewrite both READMEs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--picture", action="store_true")
    options = parser.parse_args()
    facts = read_facts(load_records(options.folder))
    for code, file in (("en", ROOT / "README.md"), ("fr", ROOT / "README.fr.md")):
        text = file.read_text(encoding="utf-8")
        if not BLOCK.search(text):
            raise SystemExit(f"{file}: no cpu-results comments to write between")
        new = block(facts, code)  # type: ignore[arg-type]
        file.write_text(BLOCK.sub(lambda m, new=new: m[1] + new + m[2], text), encoding="utf-8")  # type: ignore[misc]
        print(f"written: {file}")
    if options.picture:
        page, picture = (options.folder / "report.html").resolve(), ROOT / "docs/images/report.png"
        size = "--window-size=800,1520"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", size]
        subprocess.run(["chromium", *flags, f"--screenshot={picture}", f"file://{page}"], check=True)
        print(f"written: {picture}")


if __name__ == "__main__":
    main()
