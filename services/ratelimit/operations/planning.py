"""Plans: what the rules say of a call before its buckets are asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from math import inf
from typing import NamedTuple

from kit.errors import InvalidArgument, Violation

from ..model import Charge, Limit, Taken, Verdict, Window
from ..model.decisions import Answer, Decision, Descriptor, Outcome
from ..model.overrides import in_force
from ..model.quotas import Quota
from ..model.rules import Action, DomainRules, OnNoMatch, OnRedisDown, Rule, RuleSet, replaced
from ..store import MOST_BUCKETS_OF_A_CALL


class Check:
    """A call to be checked. It keeps its plan by the rules in force, because equal calls may share one check."""

    __slots__ = ("_plan", "descriptors", "domain")

    def __init__(self, domain: str, descriptors: Sequence[Descriptor]) -> None:
        self.domain = domain
        self.descriptors = descriptors
        self._plan: Plan | None = None

    def plan(self, rules: RuleSet, at: int) -> Plan:
        """The plan at an instant, in microseconds since 1970; with quotas it holds until the next of their periods begins.

        Raises InvalidArgument for a call without domain or descriptors, or with more buckets than can be checked."""
        plan = self._plan
        if plan is None or plan.rules is not rules or plan.starts > at or at >= plan.ends:
            plan = self._plan = _planned(self, rules, at)
        return plan


class Plan(NamedTuple):
    """What one call asks of the buckets. Charges have places: those to be debited together first, then those in shadow mode."""

    rules: RuleSet
    domain: DomainRules
    charges: tuple[Charge, ...]
    """To be debited all or none, one for each bucket."""

    shadow: tuple[Charge, ...]
    """Of rules in shadow mode, to be debited one by one if the others are, because none of them may refuse the call."""

    applying: tuple[tuple[tuple[Rule, int | None], ...], ...]
    """For each descriptor the rules that apply, and the place of each rule's charge; None for a rule that does not count."""

    unmatched: tuple[bool, ...]
    """For each descriptor, whether it is denied because no rule matches."""

    without_buckets: Decision
    """The decision if no bucket is asked: there is none to ask, or Redis is down and all rules are open."""

    closed: bool
    """Whether a rule lets nothing pass while Redis is down."""

    local: tuple[tuple[int, Charge], ...]
    """What is asked of the process's own buckets while Redis is down, in place of the charge of a place."""

    counted: tuple[tuple[tuple[Rule, int], ...], ...] | None = None
    """The same as `applying`, if every rule counts and neither they nor the domain are in shadow mode, as is most common."""

    starts: int = 0
    ends: float = inf
    """The plan holds from `starts` until `ends`, while the periods of all its quotas and its grants and bans last."""

    plain: bool = False
    """Whether every rule counts by a token bucket and none is in shadow mode: then what is owed says all of a call that passes."""

    def decision(self, taken: Taken, shadow: Sequence[Taken] = ()) -> Decision:
        """The decision by what the buckets say; rules in shadow mode say nothing if they were not asked."""
        verdicts = taken.verdicts
        if self.counted is None:
            return self.decided(dict(enumerate([*verdicts, *[each.verdicts[0] for each in shadow]])))
        answers = [Answer(tuple([Outcome(rule, verdicts[place]) for rule, place in rules])) for rules in self.counted]
        return Decision(tuple(answers), self.domain.domain)

    def decided(self, verdicts: dict[int, Verdict]) -> Decision:
        """The decision by the verdicts of some places."""
        return Decision(
            tuple(
                [
                    Answer(
                        tuple(
                            [
                                Outcome(rule, None if place is None else verdicts[place])
                                for rule, place in rules
                                if place is None or place in verdicts
                            ]
                        ),
                        unmatched,
                    )
                    for rules, unmatched in zip(self.applying, self.unmatched, strict=True)
                ]
            ),
            self.domain.domain,
            self.domain.shadow,
            trying=True,
        )


class Passed(NamedTuple):
    """A call with a plain plan that passed, as almost all do. Its decision is not worked out unless somebody wants to know."""

    plan: Plan
    taken: Taken

    @property
    def admitted(self) -> bool:
        return True

    def decision(self) -> Decision:
        return self.plan.decision(self.taken)


def _planned(check: Check, rules: RuleSet, at: int) -> Plan:
    _require(check)
    domain = rules.of(check.domain)
    matching = [domain.matching(descriptor.entries) for descriptor in check.descriptors]
    overrides_end = inf
    if domain.overridden:
        matching, overrides_end = in_force(matching, at)
    denies = domain.on_no_match is OnNoMatch.DENY
    unmatched = tuple(denies and not each for each in matching)
    if domain.replacing:
        matching = replaced(matching)
    blocked = any(rule.action is Action.BLOCK and not rule.shadow for applying in matching for rule in applying)
    charges: dict[str, Charge] = {}
    shadow: dict[str, Charge] = {}
    if domain.shadow or not (blocked or any(unmatched)):
        # Nothing is debited for a call that is refused anyway.
        for descriptor, applying in zip(check.descriptors, matching, strict=True):
            for rule in applying:
                if rule.limit is not None:
                    limit = rule.limit.window(at) if isinstance(rule.limit, Quota) else rule.limit
                    _add(shadow if rule.shadow else charges, rule, limit, descriptor)
    if len(charges) + len(shadow) > MOST_BUCKETS_OF_A_CALL:
        what = f"match rules with {len(charges) + len(shadow)} buckets together; {MOST_BUCKETS_OF_A_CALL} are the most"
        raise InvalidArgument([Violation("descriptors", what, "TOO_MANY")])
    places = {key: place for place, key in enumerate((*charges, *shadow))}
    with_places = tuple(
        tuple([(rule, _place(rule, descriptor, places)) for rule in applying])
        for descriptor, applying in zip(check.descriptors, matching, strict=True)
    )
    without_buckets = Decision(
        tuple(
            Answer(tuple(Outcome(rule, None) for rule in applying if rule.limit is None), denied)
            for applying, denied in zip(matching, unmatched, strict=True)
        ),
        domain.domain,
        domain.shadow,
        trying=True,
    )
    # Fail open, closed or local as each rule says: guessing and computing time must not become free, reading must not stop. A
    # closed rule is an error and not a refusal (429), because the client has exceeded nothing. Envoy turns the error into 503 where
    # its own failure mode denies, which holds for the same classes when this whole service does not answer.
    closed = not domain.shadow and any(
        rule.on_redis_down is OnRedisDown.CLOSED and not rule.shadow and rule.limit is not None
        for applying in matching
        for rule in applying
    )
    windows = [charge.limit for charge in (*charges.values(), *shadow.values()) if isinstance(charge.limit, Window)]
    counted = _counted(with_places, len(charges)) if not (domain.shadow or any(unmatched)) else None
    return Plan(
        rules,
        domain,
        tuple(charges.values()),
        tuple(shadow.values()),
        with_places,
        unmatched,
        without_buckets,
        closed,
        tuple(_local(with_places, (*charges.values(), *shadow.values())).items()),
        counted,
        max((each.starts for each in windows), default=0),
        min(overrides_end, min((each.ends for each in windows), default=inf)),
        plain=bool(counted and charges and not windows),
    )


def _counted(
    applying: tuple[tuple[tuple[Rule, int | None], ...], ...], charges: int
) -> tuple[tuple[tuple[Rule, int], ...], ...] | None:
    """The rules and places, if each place is that of a charge to be debited with the others."""
    counted = tuple(
        tuple((rule, place) for rule, place in rules if place is not None and 0 <= place < charges)
        for rules in applying
    )
    return counted if sum(map(len, counted)) == sum(map(len, applying)) else None


def _local(applying: Iterable[Iterable[tuple[Rule, int | None]]], charges: Sequence[Charge]) -> dict[int, Charge]:
    """By place, the charges of rules that the process checks by itself while Redis is down."""
    local = {}
    for rule, place in chain.from_iterable(applying):
        if rule.on_redis_down is OnRedisDown.LOCAL and place is not None and 0 <= place < len(charges):
            charge = charges[place]
            local[place] = Charge(charge.key, charge.limit.share(rule.local_share), charge.hits)
    return local


def _add(charges: dict[str, Charge], rule: Rule, limit: Limit | Window, descriptor: Descriptor) -> None:
    """Descriptors of a call may share a bucket, which must then hold enough for all of them."""
    key = rule.bucket(descriptor.entries)
    before = charges[key].hits if key in charges else 0
    charges[key] = Charge(key, limit, before + descriptor.hits * rule.cost)


def _place(rule: Rule, descriptor: Descriptor, places: dict[str, int]) -> int | None:
    """The place of the rule's charge. A rule whose bucket is not asked has a place that no verdict is for."""
    return None if rule.limit is None else places.get(rule.bucket(descriptor.entries), -1)


def _require(check: Check) -> None:
    violations = []
    if not check.domain:
        violations.append(Violation("domain", "is empty; it names the rules' domain", "REQUIRED"))
    if not check.descriptors:
        violations.append(Violation("descriptors", "is empty; there is nothing to limit by", "REQUIRED"))
    if violations:
        raise InvalidArgument(violations)
