"""Results of all benchmarks as one page: what is missed, a chart, the table, and what its figures mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from .machine import Machine
from .report import Row, number


@dataclass(frozen=True)
class Results:
    """What one benchmark printed as JSON."""

    benchmark: str
    machine: Machine
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @classmethod
    def parse(cls, benchmark: str, document: Mapping[str, Any]) -> Results:
        """Raises KeyError or TypeError for a document that report.as_json did not write."""
        names = [field.name for field in fields(Row)]
        rows = tuple(Row(**{name: row[name] for name in names}) for row in document["rows"])
        return cls(benchmark, Machine(**document["machine"]), rows, tuple(document["notes"]))


def reached(results: Sequence[Results]) -> list[tuple[str, float]]:
    """Each quantity that has a goal, with the part of the goal that it reaches: 1 is the goal, more is better."""
    return [
        (f"{each.benchmark}: {_beside(row)}", part)
        for each in results
        for row in each.rows
        if (part := row.reached) is not None
    ]


def as_markdown(results: Sequence[Results], chart: str) -> str:
    """The page; `chart` is the name of the picture beside it, empty if there is none."""
    parts = [
        "# Results of the benchmarks",
        "Written by `make bench`. What is measured, and why the figures are what they are: [benchmarks.md](benchmarks.md).",
        _machines(results),
        _missed(results),
    ]
    if chart:
        parts.append(f"![Each goal's part that is reached, on a logarithmic scale; 1 is the goal]({chart})")
    parts.append("\n".join(_table(results)))
    parts += [
        "\n".join([f"## What the figures of {each.benchmark} mean", "", *(f"- {note}" for note in each.notes)])
        for each in results
    ]
    return "\n\n".join(parts) + "\n"


def _machines(results: Sequence[Results]) -> str:
    machine = results[0].machine
    loads = ", ".join(f"{each.machine.load:.1f} ({each.benchmark})" for each in results)
    return f"Machine: {machine.cpu}, {machine.cores} cores, Python {machine.python}. Load average before each: {loads}."


def _missed(results: Sequence[Results]) -> str:
    missed = [
        f"- {each.benchmark}: {_beside(row)}: {row.ratio:.2f}, goal {row.goal}"
        for each in results
        for row in each.rows
        if row.met is False
    ]
    return "\n".join(["Missed:", "", *missed]) if missed else "Every goal is reached."


def _beside(row: Row) -> str:
    return f"{row.what} (beside {row.beside})" if row.beside != "goal" else row.what


def _table(results: Sequence[Results]) -> list[str]:
    lines = ["| Benchmark | Measured | | Beside | | Ratio | Goal |", "|---|---|---:|---|---:|---:|---|"]
    for each in results:
        for row in each.rows:
            cells = [
                each.benchmark,
                row.what,
                f"{number(row.measured)} {row.unit}",
                row.beside,
                "" if row.baseline is None else f"{number(row.baseline)} {row.unit}",
                "" if row.ratio is None else f"{row.ratio:.2f}",
                {True: f"{row.goal}, met", False: f"**{row.goal}, missed**", None: row.goal}[row.met],
            ]
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return lines
