"""Explains rules in words: what each says, which apply to a call and why others do not, and what differs between two files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..model import MICROSECONDS, State, Taken, take_in_order
from ..model.decisions import Decision, Descriptor, tightest
from ..model.matching import DescriptorEntry
from ..model.overrides import OverrideKind, in_force
from ..model.quotas import Quota
from ..model.rules import Action, DomainRules, LeaseRule, Rule, RuleSet, replaced
from . import metadata
from .planning import Check

_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_EPOCH = 1_700_000_000 * MICROSECONDS
"""A moment for recorded calls that name none."""


def table(rules: DomainRules) -> str:
    """A line for each rule."""
    rows = [
        (rule.name, " ".join(map(str, rule.match)), limit_of(rule), _when_away(rule), ", ".join(_further(rule)))
        for rule in (*rules.rules, *rules.leases)
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def limit_of(rule: Rule) -> str:
    """What a rule allows: its rate as it is kept, and what may pass at once."""
    if isinstance(rule, LeaseRule):
        return f"{rule.most} at a time, each for {rule.ttl_seconds} s"
    if rule.action is Action.UNLIMITED:
        return "unlimited"
    if rule.limit is None:
        return "blocked"
    limit = rule.limit
    if isinstance(limit, Quota):
        return f"{limit.requests} a calendar {limit.period} of {limit.time_zone}"
    seconds, unit = next(each for each in _UNITS if limit.period_seconds % each[0] == 0)
    count = limit.period_seconds // seconds
    return f"{limit.requests}/{'' if count == 1 else count}{unit}, burst {limit.burst}"


def _when_away(rule: Rule) -> str:
    return f"{rule.on_redis_down} when Redis is down" if rule.limit is not None or isinstance(rule, LeaseRule) else ""


def _further(rule: Rule) -> Iterator[str]:
    if rule.cost > 1:
        yield f"{rule.cost} tokens a hit"
    if rule.shadow:
        yield "shadow"
    if rule.always:
        yield "always"
    if rule.replaces:
        yield f"replaces {', '.join(sorted(rule.replaces))}"


def hints(rules: DomainRules) -> Iterator[str]:
    """Where a rule that names a value in a later entry gives way to one that is more specific in an earlier entry.

    Such a rule looks as if it held for every call with its value, and does not.
    """
    by_keys: dict[tuple[str, ...], list[Rule]] = {}
    for rule in rules.rules:
        if not rule.always:
            by_keys.setdefault(rule.keys, []).append(rule)
    for alike in by_keys.values():
        for rule in alike:
            over = [each.name for each in alike if _crosses(each.match, rule.match)]
            if over:
                more = f" and {len(over) - 1} others" if len(over) > 1 else ""
                yield f"{rule.name} gives way to {over[0]}{more}; `always: true` makes it apply beside them"


def _crosses(first: Sequence[DescriptorEntry], second: Sequence[DescriptorEntry]) -> bool:
    """Whether the first is more specific in an earlier entry and less in a later one, and both can match one descriptor."""
    orders = [one.specificity > other.specificity for one, other in zip(first, second, strict=True)]
    less = [one.specificity < other.specificity for one, other in zip(first, second, strict=True)]
    meet = all(one.covers(other) or other.covers(one) for one, other in zip(first, second, strict=True))
    return meet and True in orders and True in less and orders.index(True) < less.index(True)


def applications(domain: DomainRules, descriptors: Sequence[Descriptor], at: int = 0) -> list[list[tuple[Rule, str]]]:
    """For each descriptor the rules that match it, in the order of the file, and why one does not apply; empty if it does.

    `at` is the instant, in microseconds since 1970, that decides which grants and bans have ended.
    """
    matching = [domain.matching(descriptor.entries) for descriptor in descriptors]
    left, _ = in_force(matching, at)
    return [
        list(_reasoned(domain, descriptor, matched, applying, left, at=at))
        for descriptor, matched, applying in zip(descriptors, matching, replaced(left), strict=True)
    ]


def _reasoned(
    domain: DomainRules,
    descriptor: Descriptor,
    matched: Sequence[Rule],
    applying: Sequence[Rule],
    left: Sequence[Sequence[Rule]],
    *,
    at: int,
) -> Iterator[tuple[Rule, str]]:
    names = {rule.name for rule in applying}
    for rule in domain.rules:
        if rule.name in names:
            yield rule, ""
        elif rule in matched and not 0 < rule.ends_at <= at:
            instead = [each.name for each in applying if each.group == OverrideKind.GRANT]
            by = [each.name for rules in left for each in rules if rule.name in each.replaces]
            yield rule, f"{(by or instead or ['a rule without limit'])[0]} replaces it"
        elif not rule.ends_at and rule.matches(descriptor.entries):
            yield rule, f"{matched[0].name if matched else '?'} is more specific"


def explain(rules: RuleSet, domain: str, descriptors: Sequence[Descriptor]) -> str:
    """Say for each descriptor which rules apply and with which bucket, and why others that match do not."""
    of_domain = rules.of(domain)
    lines = []
    for descriptor, reasoned in zip(descriptors, applications(of_domain, descriptors), strict=True):
        lines.append(" ".join(f"{key}={value}" for key, value in descriptor.entries))
        for rule, why_not in reasoned:
            if why_not:
                lines.append(f"  {rule.name} does not apply: {why_not}")
            else:
                bucket = f", bucket {rule.bucket(descriptor.entries)}" if rule.limit is not None else ""
                lines.append(f"  {rule.name} applies: {limit_of(rule)}{bucket}")
        bounding = of_domain.matching_leases(descriptor.entries)
        for lease in of_domain.leases:
            if lease in bounding:
                lines.append(
                    f"  {lease.name} bounds leases: {limit_of(lease)}, holders {lease.bucket(descriptor.entries)}"
                )
            elif lease.matches(descriptor.entries):
                lines.append(f"  {lease.name} does not bound leases: {bounding[0].name} is more specific")
        if not reasoned and not bounding:
            lines.append(f"  no rule matches: on_no_match is {of_domain.on_no_match}")
    return "\n".join(lines)


@dataclass(frozen=True)
class RecordedCall:
    """A call as a line of a recording tells it."""

    line: int
    at: int
    """Microseconds since 1970."""

    domain: str
    descriptors: tuple[Descriptor, ...]


class BadRecording(ValueError):
    """A line of a recording cannot be understood. The message names it."""


def recorded(path: Path) -> Iterator[RecordedCall]:
    """The calls of a file with a JSON object a line: `domain`, `descriptors`, and perhaps `at` in seconds. Raises BadRecording."""
    with path.open(encoding="utf-8") as lines:
        yield from recorded_lines(lines, str(path))


def recorded_lines(lines: Iterable[str], source: str) -> Iterator[RecordedCall]:
    """The calls of such lines. Raises BadRecording, which names the source."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield _recorded_call(number, json.loads(line))
        except (ValueError, TypeError, KeyError, AttributeError):
            form = '{"at": 1.5, "domain": "d", "descriptors": [{"entries": [["key", "value"]], "hits": 1}]}'
            raise BadRecording(
                f"{source}:{number}: is not a call; one is {form}, where at and hits may be missing"
            ) from None


def _recorded_call(number: int, call: Any) -> RecordedCall:
    descriptors = tuple(
        Descriptor(tuple((_text(key), _text(value)) for key, value in each["entries"]), _hits(each.get("hits", 1)))
        for each in call["descriptors"]
    )
    if not descriptors:
        raise ValueError
    return RecordedCall(
        number, _EPOCH + round(float(call.get("at", 0)) * MICROSECONDS), _text(call["domain"]), descriptors
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _hits(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError
    return value


@dataclass
class Comparison:
    """How two sets of rules decided the same calls."""

    calls: int
    admitted: tuple[int, int]
    differing: list[tuple[RecordedCall, str, str]]
    """The first calls that were decided otherwise, and both decisions in words."""

    kinds: Counter[tuple[str, str]]
    """How often the one decision became the other."""

    first: dict[tuple[str, str], RecordedCall] = field(default_factory=dict)
    """The first call of each kind."""


def compare(one: RuleSet, other: RuleSet, calls: Iterable[RecordedCall], *, most: int = 20) -> Comparison:
    """Decide every call by both sets of rules, from full buckets, at its own time, and tell where they differ."""
    result = Comparison(0, (0, 0), [], Counter())
    states: tuple[dict[str, State], dict[str, State]] = ({}, {})
    for call in calls:
        first, second = (_decided(rules, call, state) for rules, state in zip((one, other), states, strict=True))
        result.calls += 1
        result.admitted = result.admitted[0] + first.admitted, result.admitted[1] + second.admitted
        words = in_words(first), in_words(second)
        if first.admitted is not second.admitted:
            result.kinds[words] += 1
            result.first.setdefault(words, call)
            if len(result.differing) < most:
                result.differing.append((call, *words))
    return result


def in_words(decision: Decision) -> str:
    deciding = tightest([outcome for answer in decision.answers for outcome in answer.outcomes])
    outcome, how = metadata.of(decision, deciding, decision.admitted)
    if outcome is None:
        return f"{how}, as no rule matches"
    return f"{how} by {outcome.rule.name}"


def _decided(rules: RuleSet, call: RecordedCall, states: dict[str, State]) -> Decision:
    plan = Check(call.domain, call.descriptors).plan(rules, call.at)
    if not plan.charges and not plan.shadow:
        return plan.without_buckets
    (taken,) = take_in_order([plan.charges], states, at=call.at) if plan.charges else [Taken(call.at, ())]
    shadow = take_in_order([(charge,) for charge in plan.shadow], states, at=call.at) if taken.admitted else []
    return plan.decision(taken, shadow)
