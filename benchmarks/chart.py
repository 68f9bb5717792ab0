"""Draws the part of each goal that is reached, as SVG.

Run as `python -m benchmarks.chart FILE` with matplotlib on the path; reads a JSON list of (quantity, part of the goal) pairs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

_ROW_INCHES = 0.3
_REACHED, _MISSED = "#1b7f5c", "#c2562f"


def draw(reached: list[tuple[str, float]], file: Path) -> None:
    """Write the bars, the first quantity on top. The same values give the same bytes, so that a diff shows changes only."""
    mpl.rcParams["svg.hashsalt"] = "storymesh"
    mpl.rcParams["svg.fonttype"] = "none"
    figure = Figure(figsize=(11, 1.2 + _ROW_INCHES * len(reached)), layout="constrained")
    axes = figure.subplots()
    names = [name for name, _ in reached]
    parts = [part for _, part in reached]
    bars = axes.barh(names, parts, color=[_REACHED if part >= 1 else _MISSED for part in parts])
    axes.bar_label(bars, labels=[f"{part:.2f}" for part in parts], padding=4, fontsize=8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(min(0.1, *parts) / 1.5, max(10, *parts) * 1.8)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("part of the goal that is reached (1 = the goal; more is better)")
    axes.tick_params(axis="y", labelsize=8)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    draw(json.load(sys.stdin), Path(sys.argv[1]))
