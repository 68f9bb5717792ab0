"""Operators' commands: checking, explaining, comparing and converting rules. None of them needs the service or Redis."""

from __future__ import annotations

import sys
from pathlib import Path

from .model.decisions import Descriptor
from .model.rules import RuleSet
from .operations import explaining
from .operations.classes import EDGE_DOMAIN, load_fitting
from .store.foreign_rules import Conversion
from .store.rules_file import BadRules, load


def check(path: Path) -> None:
    """Print the rules as parsed, or exit with their faults."""
    try:
        rules = load_fitting(path)
    except BadRules as error:
        sys.exit(str(error))
    for each in rules.domains:
        shadow = "; shadow: refuses nothing" if each.shadow else ""
        count = len(each.rules) + len(each.leases)
        print(f"{path}: {count} rules of the domain {each.domain}; on_no_match: {each.on_no_match}{shadow}")
        print(explaining.table(each))
        for hint in explaining.hints(each):
            print(f"hint: {hint}")


def explain(path: Path, texts: list[str], domain: str = EDGE_DOMAIN) -> None:
    """Print which rules apply to a call with these descriptors, and why others do not."""
    print(explaining.explain(_loaded(path), domain, [_descriptor(text) for text in texts]))


def compare(current: Path, candidate: Path, recording: Path) -> None:
    """Print which recorded calls the candidate rules decide otherwise. Exits with 1 if there are any."""
    try:
        result = explaining.compare(_loaded(current), _loaded(candidate), explaining.recorded(recording))
    except (OSError, explaining.BadRecording) as error:
        sys.exit(str(error))
    admitted, then = result.admitted
    differing = result.kinds.total()
    print(
        f"{result.calls} calls: {admitted} admitted by {current}, {then} by {candidate}; {differing} decided otherwise"
    )
    for (before, after), times in result.kinds.most_common():
        print(f"  {times} times {before}, then {after}")
    for call, before, after in result.differing:
        named = "; ".join(" ".join(f"{key}={value}" for key, value in each.entries) for each in call.descriptors)
        print(f"{recording}:{call.line}: {named}: {before}, then {after}")
    if differing:
        sys.exit(1)


def convert(path: Path) -> None:
    """Print the rules of a file of envoyproxy/ratelimit as ours, and on standard error what could not be kept."""
    try:
        conversion = Conversion(path)
    except BadRules as error:
        sys.exit(str(error))
    print(conversion.text, end="")
    for notice in conversion.notices:
        print(notice, file=sys.stderr)


def _loaded(path: Path) -> RuleSet:
    try:
        return load(path)
    except BadRules as error:
        sys.exit(str(error))


def _descriptor(text: str) -> Descriptor:
    """A descriptor written as `key=value,key=value`."""
    entries = [part.partition("=") for part in text.split(",")]
    if not all(key and equals for key, equals, _ in entries):
        sys.exit(f"{text} is not a descriptor; write key=value,key=value")
    return Descriptor(tuple((key, value) for key, _, value in entries))
