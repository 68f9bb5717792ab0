"""Prints measurements as a table or as JSON."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from .machine import Machine

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le, "<": operator.lt}


@dataclass(frozen=True)
class Row:
    """One quantity, with its baseline from the same run."""

    what: str
    measured: float
    unit: str
    beside: str = ""
    """Name of the baseline."""
    baseline: float | None = None
    """The baseline's value in the same unit."""
    goal: str = ""
    """Goal for the ratio, such as `>= 0.9`, `<= 0.6` or `< 3`."""

    @property
    def ratio(self) -> float | None:
        return self.measured / self.baseline if self.baseline else None

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None if there is none."""
        if not self.goal or self.ratio is None:
            return None
        sign, bound = self.goal.split()
        return _COMPARISONS[sign](self.ratio, float(bound))

    @property
    def reached(self) -> float | None:
        """The part of the goal that is reached: 1 is the goal, more is better; None if there is none."""
        if not self.goal or not self.ratio:
            return None
        sign, bound = self.goal.split()
        return self.ratio / float(bound) if sign == ">=" else float(bound) / self.ratio


def as_json(machine: Machine, rows: Sequence[Row], notes: Sequence[str]) -> str:
    return json.dumps(
        {
            "machine": asdict(machine),
            "rows": [asdict(row) | {"ratio": row.ratio, "met": row.met} for row in rows],
            "notes": list(notes),
        },
        indent=2,
    )


def show(console: Console, machine: Machine, rows: Sequence[Row], notes: Sequence[str]) -> None:
    table = Table(
        title=str(machine), title_justify="left", title_style="", box=None, pad_edge=False, header_style="bold"
    )
    table.add_column("measured")
    table.add_column("", justify="right")
    table.add_column("")
    table.add_column("beside")
    table.add_column("", justify="right")
    table.add_column("ratio", justify="right")
    table.add_column("goal")
    for row in rows:
        table.add_row(
            row.what,
            number(row.measured),
            row.unit,
            row.beside,
            "" if row.baseline is None else number(row.baseline),
            "" if row.ratio is None else f"{row.ratio:.2f}",
            row.goal and f"{row.goal} [{'green' if row.met else 'red'}]{'met' if row.met else 'missed'}[/]",
        )
    console.print(table)
    for note in notes:
        console.print(f"- {note}", highlight=False, markup=False)


def number(value: float) -> str:
    """Three digits at least, and thousands apart."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
