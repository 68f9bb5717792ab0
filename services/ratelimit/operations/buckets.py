"""Checks whether calls may pass, by all rules that match any of their descriptors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import NamedTuple

import redis.exceptions

from kit.errors import DeadlineExceeded, Internal, InvalidArgument, MeshError, Violation

from ..errors import BucketsUnreachable
from ..model import Charge, Taken, Verdict
from ..model.rules import Entries, OnNoMatch, OnRedisDown, Rule, RuleSet
from ..store import MOST_BUCKETS_OF_A_CALL, BucketStore

log = logging.getLogger(__name__)

_KEEP_SECONDS = 0.01
"""Subtracted from a caller's deadline, so that the answer without Redis still reaches the caller."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A description of a call, and the tokens that it costs; 0 hits only ask."""

    entries: Entries
    hits: int = 1


class Check:
    """A call to be checked. It keeps its plan by the rules in force, because equal calls may share one check."""

    __slots__ = ("_plan", "descriptors", "domain")

    def __init__(self, domain: str, descriptors: Sequence[Descriptor]) -> None:
        self.domain = domain
        self.descriptors = descriptors
        self._plan: Plan | None = None

    def plan(self, rules: RuleSet) -> Plan:
        """Raises InvalidArgument for a call without domain or descriptors, or with more buckets than can be checked."""
        plan = self._plan
        if plan is None or plan.rules is not rules:
            plan = self._plan = _planned(self, rules)
        return plan


class Asking(NamedTuple):
    """A check, and the seconds until its caller's deadline, if there is one."""

    check: Check
    remaining: float | None


class Outcome(NamedTuple):
    """One rule's verdict on the call."""

    rule: Rule
    verdict: Verdict


class Answer(NamedTuple):
    """The outcomes for one descriptor. Empty if no rule matches, or if Redis is down and the matching rules are open."""

    outcomes: tuple[Outcome, ...] = ()
    denied_unmatched: bool = False

    @property
    def admitted(self) -> bool:
        return not self.denied_unmatched and all(outcome.verdict.admits for outcome in self.outcomes)


class Decision(NamedTuple):
    """One answer per descriptor, in order. The call passes if all admit it."""

    answers: tuple[Answer, ...]

    @property
    def admitted(self) -> bool:
        return all(answer.admitted for answer in self.answers)


class Plan(NamedTuple):
    """What the rules say of a call before its buckets are asked."""

    rules: RuleSet
    charges: tuple[Charge, ...]
    """One for each bucket of the call."""

    applying: tuple[tuple[tuple[Rule, int], ...], ...]
    """For each descriptor the rules that match it, and the place of each rule's charge."""

    without_buckets: Decision
    """The decision if no bucket is asked: there is none to ask, or Redis is down and all rules are open."""

    closed: bool
    """Whether a rule lets nothing pass while Redis is down."""

    def decision(self, taken: Taken) -> Decision:
        verdicts = taken.verdicts
        return Decision(
            tuple([Answer(tuple([Outcome(rule, verdicts[place]) for rule, place in each])) for each in self.applying])
        )


def tightest(outcomes: Sequence[Outcome]) -> Outcome | None:
    """The outcome that a client must obey: the longest refusal, else the bucket with the fewest tokens."""
    return outcomes[0] if len(outcomes) == 1 else min(outcomes, key=_looseness, default=None)


def _looseness(outcome: Outcome) -> tuple[bool, int]:
    verdict = outcome.verdict
    return verdict.admits, verdict.remaining if verdict.admits else -verdict.wait


class Buckets:
    """Checks calls against the rules in force, many at a time, for one thread at a time."""

    def __init__(self, store: BucketStore, rules: Callable[[], RuleSet], *, redis_seconds: float) -> None:
        self._store = store
        self._rules = rules
        self._redis_seconds = redis_seconds
        self._redis_answers = True

    def check(self, domain: str, descriptors: Sequence[Descriptor], *, remaining: float | None) -> Decision:
        """Check one call; raises what `check_many` would answer."""
        (answer,) = self.check_many([Asking(Check(domain, descriptors), remaining)])
        if isinstance(answer, MeshError):
            raise answer
        return answer

    def check_many(self, asking: Sequence[Asking]) -> list[Decision | MeshError]:
        """Decide calls in their order; debit every matching bucket of a call, or none if one refuses.

        An answer is InvalidArgument for a call that cannot be checked, DeadlineExceeded if its deadline is too near for an answer,
        and BucketsUnreachable if Redis is down and a matching rule is closed. Calls are answered before the nearest of their
        deadlines, or after at most twice the time until then.
        """
        rules, begun = self._rules(), monotonic()
        answers: list[Decision | MeshError] = []
        waiting: list[tuple[float, int, Plan]] = []
        for number, (check, remaining) in enumerate(asking):
            seconds = self._redis_seconds if remaining is None else min(self._redis_seconds, remaining - _KEEP_SECONDS)
            try:
                plan = check.plan(rules)
            except MeshError as error:
                answers.append(error)
                continue
            except Exception:
                # One call that we cannot deal with must not take its neighbours along.
                log.exception("unexpected error with one call")
                answers.append(Internal())
                continue
            if seconds <= 0:
                answers.append(DeadlineExceeded())
                continue
            answers.append(plan.without_buckets)
            if plan.charges:
                waiting.append((seconds, number, plan))
        for group in _by_urgency(waiting):
            taken = self._take([plan.charges for _, _, plan in group], begun + group[0][0] - monotonic())
            if taken is None:
                for _, number, plan in group:
                    if plan.closed:
                        answers[number] = BucketsUnreachable()
                continue
            for (_, number, plan), each in zip(group, taken, strict=True):
                answers[number] = plan.decision(each)
        return answers

    def _take(self, calls: Sequence[tuple[Charge, ...]], seconds: float) -> list[Taken] | None:
        """The results; None if Redis does not answer in time. The calls may have been debited even so."""
        try:
            taken = self._store.take(calls, seconds=seconds)
        except (redis.exceptions.RedisError, OSError) as error:
            if self._redis_answers:
                log.error("the buckets cannot be reached, each rule's on_redis_down applies: %s", error)
            self._redis_answers = False
            return None
        if not self._redis_answers:
            log.info("the buckets can be reached again")
        self._redis_answers = True
        return taken


def _by_urgency(waiting: list[tuple[float, int, Plan]]) -> Iterator[list[tuple[float, int, Plan]]]:
    """Groups of calls that may wait about as long, so that one near deadline takes no time from calls that have it.

    Almost always all calls are one group, in their order.
    """
    if waiting and max(waiting)[0] > 2 * min(waiting)[0]:
        waiting.sort(key=lambda each: each[0])
        while waiting[-1][0] > 2 * waiting[0][0]:
            number = next(number for number, each in enumerate(waiting) if each[0] > 2 * waiting[0][0])
            yield waiting[:number]
            del waiting[:number]
    if waiting:
        yield waiting


def _planned(check: Check, rules: RuleSet) -> Plan:
    _require(check)
    matched = [rules.matching(check.domain, descriptor.entries) for descriptor in check.descriptors]
    if rules.on_no_match is OnNoMatch.DENY and not all(matched):
        # Debit nothing for a call that is refused anyway.
        refusal = Decision(tuple(Answer(denied_unmatched=not applying) for applying in matched))
        return Plan(rules, (), (), refusal, closed=False)
    charges: dict[str, Charge] = {}
    applying = []
    for descriptor, matching in zip(check.descriptors, matched, strict=True):
        keys = [rules.bucket(rule, descriptor.entries) for rule in matching]
        for rule, key in zip(matching, keys, strict=True):
            # Descriptors of a call may share a bucket, which must then hold enough for all of them.
            before = charges[key].hits if key in charges else 0
            charges[key] = Charge(key, rule.limit, before + descriptor.hits)
        applying.append(tuple(zip(matching, keys, strict=True)))
    if len(charges) > MOST_BUCKETS_OF_A_CALL:
        what = f"match rules with {len(charges)} buckets together; {MOST_BUCKETS_OF_A_CALL} are the most"
        raise InvalidArgument([Violation("descriptors", what, "TOO_MANY")])
    places = {key: place for place, key in enumerate(charges)}
    return Plan(
        rules,
        tuple(charges.values()),
        tuple(tuple((rule, places[key]) for rule, key in each) for each in applying),
        Decision(tuple(Answer() for _ in matched)),
        # Fail open or closed as each rule says: guessing and computing time must not become free, reading must not stop. A closed
        # rule is an error and not a refusal (429), because the client has exceeded nothing. Envoy turns the error into 503 where
        # its own failure mode denies, which holds for the same classes when this whole service does not answer.
        closed=any(rule.on_redis_down is OnRedisDown.CLOSED for matching in matched for rule in matching),
    )


def _require(check: Check) -> None:
    violations = []
    if not check.domain:
        violations.append(Violation("domain", "is empty; it names the rules' domain", "REQUIRED"))
    if not check.descriptors:
        violations.append(Violation("descriptors", "is empty; there is nothing to limit by", "REQUIRED"))
    if violations:
        raise InvalidArgument(violations)
