"""Every figure of the guide as data and code: its place, our verdict, and the function that says so."""

from __future__ import annotations

from inferoptim.economics.claims import levers, method, money, physics, plan, text  # noqa: F401 - registers the rows
from inferoptim.economics.claims.model import CLAIMS, Claim, Evidence, Finding, Verdict, examine_all

__all__ = ["CLAIMS", "Claim", "Evidence", "Finding", "Verdict", "examine_all"]
