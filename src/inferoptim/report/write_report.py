"""`write_report`: a results folder in, `report.html` and `report.md` out. Same records, same bytes."""

from __future__ import annotations

import os
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from inferoptim.errors import CapacityError, ConfigError
from inferoptim.report import figures, quality_tables, tables, use_tables
from inferoptim.report.facts import Case, Facts, read_facts
from inferoptim.report.kv import contiguous_and_paged
from inferoptim.report.language import CATALOGUES, Language, LanguageCode, clean
from inferoptim.report.load import load_records
from inferoptim.report.markdown import code_block, escape_markdown
from inferoptim.report.money_tables import money_content
from inferoptim.report.sections import environment_rows, protocol_rows
from inferoptim.report.table import Table
from inferoptim.report.verdict import computed_warnings, verdict
from inferoptim.report.waits import kv_note, waiting_table

_TEMPLATES = ("report.html.j2", "report.md.j2")


def write_report(folder: Path, language: LanguageCode = "en") -> Path:
    """Write `report.html` and `report.md` into a results folder.

    Args:
        folder: `results/<run>/`, with at least summary.json.
        language: 'en' or 'fr'.

    Returns:
        The path of report.html.

    Raises:
        DataError: summary.json is missing, or a record cannot be read (file and line named).
        ConfigError: no such language.
        CapacityError: the files cannot be written.
    """
    folder = Path(folder)
    html, markdown = render(read_facts(load_records(folder)), Language(check_language(language)))
    _write(folder / "report.md", markdown)
    return _write(folder / "report.html", html)


def check_language(language: str) -> LanguageCode:
    """The language's code.

    Raises:
        ConfigError: there is no catalogue of that language.
    """
    if language in CATALOGUES:
        return cast(LanguageCode, language)
    raise ConfigError(f"report language {language!r}: not one of {', '.join(CATALOGUES)}")


def render(facts: Facts, language: Language) -> tuple[str, str]:
    """(HTML, Markdown) of one run."""
    content = _content(facts, language)
    html = (
        _environment(autoescape=True)
        .get_template("report.html.j2")
        .render(content, css=Markup(_template("report.css")))
    )
    markdown = _environment(autoescape=False).get_template("report.md.j2").render(content)
    return html, markdown


def _content(facts: Facts, language: Language) -> dict[str, Any]:
    pairs = [(case, contiguous_and_paged(facts, case)) for case in _busiest(facts)]
    pairs = [(case, pair) for case, pair in pairs if pair]
    return {
        "t": language,
        "facts": facts,
        "summary": facts.run.summary,
        "env": facts.run.folder.environment,
        "verdict": verdict(facts, language),
        "headline": tables.headline(facts, language),
        "effects": tables.effects(facts, language),
        "kv_note": kv_note(facts, language),
        "waits": _present(waiting_table(facts, c, language) for c in facts.cases),
        "is_ladder": facts.run.folder.plan.get("design") == "ladder",
        "ladders": [tables.ladder(facts, c, language) for c in facts.cases],
        "failed_only": tables.unmeasured(facts, language) if not facts.cases else None,
        "tails": _present(tables.tails(facts, c, language) for c in facts.cases),
        "waterfalls": _drawn("waterfall", figures.cost_waterfall, facts, language),
        "frontiers": [
            (clean(name), drawn)
            for i, (name, cases) in enumerate(facts.families.items(), 1)
            if (drawn := figures.frontier(f"frontier-{i}", facts, clean(name), cases, language))
        ],
        "cdfs": _drawn("cdf", figures.latency_cdf, facts, language),
        "kv_figures": [
            (tables.case_title(case, language), figures.kv_memory(f"kv-{i}", pair, language))
            for i, (case, pair) in enumerate(pairs, 1)
        ],
        "kv_table": use_tables.kv_sharing(pairs, language),
        "ceiling_figures": _drawn("ceiling", figures.ceiling_bars, facts, language),
        "ceiling_tables": _present(tables.ceiling(facts, c, language) for c in facts.cases),
        "distribution": quality_tables.distribution(facts, language),
        "identity": quality_tables.identity(facts, language),
        "costs": use_tables.costs(facts, language),
        "telemetry": use_tables.telemetry(facts, language),
        "warnings": [*computed_warnings(facts, language), *(clean(w) for w in facts.run.summary.warnings)],
        "protocol": protocol_rows(facts, language),
        "environment_rows": environment_rows(facts, language),
        **money_content(facts, language),
        "confidence": _confidence(facts, language),
        "clean": clean,
    }


def _busiest(facts: Facts) -> list[Case]:
    """The case of most requests at once of each family: where KV memory matters."""
    return [max(cases, key=lambda c: c.concurrency or 0) for cases in facts.families.values()]


def _drawn(name: str, draw: Any, facts: Facts, language: Language) -> list[tuple[str, Markup]]:
    made = ((case, draw(f"{name}-{i}", facts, case, language)) for i, case in enumerate(facts.cases, 1))
    return [(tables.case_title(case, language), figure) for case, figure in made if figure]


def _present(found: Any) -> list[Table]:
    return [table for table in found if table is not None]


def _environment(autoescape: bool) -> Environment:
    environment = Environment(
        loader=DictLoader({name: _template(name) for name in _TEMPLATES}),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = escape_markdown
    environment.filters["code_block"] = code_block
    return environment


def _template(name: str) -> str:
    return (files("inferoptim.report") / "templates" / name).read_text(encoding="utf-8")


def _confidence(facts: Facts, language: Language) -> str:
    """'95%', from the intervals themselves."""
    levels = sorted(
        {m.output_tokens_per_s.confidence for m in facts.run.summary.metrics if m.output_tokens_per_s}
    )
    return language.join(language.percent(level, 0) for level in levels) or language("none_stated")


def _write(file: Path, text: str) -> Path:
    """Write aside, then rename: a reader sees the old report or the new one, never half of one."""
    aside = None
    try:
        descriptor, aside = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.", suffix=".part")
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(aside, 0o644)
        os.replace(aside, file)
    except OSError as error:
        raise CapacityError(
            f"{file}: cannot be written ({error.strerror}); free room or choose another folder"
        ) from error
    finally:
        if aside is not None:
            Path(aside).unlink(missing_ok=True)
    return file
