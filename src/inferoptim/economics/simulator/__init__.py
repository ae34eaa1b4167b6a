"""The simulator: one HTML file that recomputes `inferoptim roi` as its sliders move, in English and French."""

from __future__ import annotations

from inferoptim.economics.simulator.build import simulator_page

__all__ = ["simulator_page"]
