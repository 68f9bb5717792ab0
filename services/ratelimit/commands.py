"""Operators' commands: checking rules."""

from __future__ import annotations

import sys
from pathlib import Path

from .model.rules import RuleSet
from .operations.classes import load_fitting
from .store.rules_file import BadRules


def check(path: Path) -> None:
    """Print the rules as parsed, or exit with their faults."""
    try:
        rules = load_fitting(path)
    except BadRules as error:
        sys.exit(str(error))
    print(f"{path}: {len(rules.rules)} rules of the domain {rules.domain}; on_no_match: {rules.on_no_match}")
    print(_table(rules))


def _table(rules: RuleSet) -> str:
    rows = [
        (
            rule.name,
            " ".join(map(str, rule.match)),
            f"{rule.limit.requests} per {rule.limit.period_seconds} s",
            f"burst {rule.limit.burst}",
            f"{rule.on_redis_down} when Redis is down",
        )
        for rule in rules.rules
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
