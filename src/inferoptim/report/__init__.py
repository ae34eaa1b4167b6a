"""The report of a bench run: a pure function of its records. Imports no torch."""

from __future__ import annotations

from inferoptim.report.write_report import write_report

__all__ = ["write_report"]
