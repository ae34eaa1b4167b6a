"""The report of made-up records: the whole text against a snapshot, and the rules that no snapshot may bend.

After a wanted change of words or layout: UPDATE_SNAPSHOTS=1 pytest tests/golden/test_report.py, then read the diff.
"""

from __future__ import annotations

import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from inferoptim.report.language import CATALOGUES
from inferoptim.report.write_report import write_report
from tests.golden import report_records

SNAPSHOTS = Path(__file__).with_name("snapshots")
VOID = {"meta", "br", "link", "img", "hr", "input"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report_records.write_folder(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("language", ["en", "fr"])
def test_markdown_is_the_snapshot(folder: Path, language: str) -> None:
    write_report(folder, language)  # type: ignore[arg-type]
    found = (folder / "report.md").read_text(encoding="utf-8")
    snapshot = SNAPSHOTS / f"report.{language}.md"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        SNAPSHOTS.mkdir(exist_ok=True)
        snapshot.write_text(found, encoding="utf-8")
    assert found == snapshot.read_text(encoding="utf-8")


def test_same_records_same_bytes(folder: Path) -> None:
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first


def test_both_languages_say_the_same_things() -> None:
    english, french = CATALOGUES["en"], CATALOGUES["fr"]
    assert english.keys() == french.keys()
    for key, text in english.items():
        assert set(re.findall(r"{(\w+)", text)) == set(re.findall(r"{(\w+)", french[key])), key


def test_what_failed_has_no_figure_anywhere(folder: Path) -> None:
    write_report(folder)
    lines = (folder / "report.md").read_text(encoding="utf-8").splitlines()
    for label in ("+ prefix caching", "+ kv quantization"):
        rows = [line for line in lines if line.startswith("|") and label in line.split("|")[2]]
        assert rows
        for row in rows:
            cells = [c.strip() for c in row.split("|")[3:]]
            measured_quality = (
                "KL" in row or "Quantised" in row or re.search(r"\| (all|English|French|tous)", row)
            )
            if not measured_quality and "not measured" not in row:
                assert "ailed" in " ".join(cells), row


class _Checker(HTMLParser):
    """Well-formed, self-contained, one h1, unique ids, no scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.anchors: list[str] = []
        self.tags: set[str] = set()
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        named = dict(attrs)
        if named.get("id"):
            self.ids.append(str(named["id"]))
        if tag == "a" and (named.get("href") or "").startswith("#"):
            self.anchors.append(str(named["href"])[1:])
        self.outside += [
            v for k, v in attrs if k in ("src", "href") and v and not v.startswith(("#", "data:"))
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"


def test_html_is_well_formed_and_needs_nothing_from_outside(folder: Path) -> None:
    checker = _Checker()
    checker.feed(write_report(folder).read_text(encoding="utf-8"))
    assert not checker.open
    assert len(checker.ids) == len(set(checker.ids))
    assert set(checker.anchors) <= set(checker.ids)
    assert "script" not in checker.tags
    assert not checker.outside


def test_text_from_records_cannot_inject_markup(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>'
    environment = report_records.environment().model_copy(update={"model": evil, "command": evil})
    page = write_report(report_records.write_folder(tmp_path, of_environment=environment)).read_text()
    assert "<script" not in page


def test_nothing_measured_is_said_and_never_zero(tmp_path: Path) -> None:
    empty = report_records.summary(metrics=(), quality=())
    folder = report_records.write_folder(tmp_path, empty, of_runs=(), of_requests=(), of_telemetry=())
    write_report(folder)
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "No configuration" in text or "not measured" in text
    assert not re.search(r"\| 0 \|", text)
