"""Checks whether a call may pass, by all rules that match any of its descriptors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import redis.exceptions

from kit.errors import DeadlineExceeded, InvalidArgument, Violation

from ..errors import BucketsUnreachable
from ..model import Charge, Verdict
from ..model.rules import Entries, OnNoMatch, OnRedisDown, Rule, RuleSet
from ..store.buckets import BucketStore

log = logging.getLogger(__name__)

_KEEP_SECONDS = 0.01
"""Subtracted from the caller's deadline, so that the answer without Redis still reaches the caller."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A description of a call, and the tokens that it costs; 0 hits only ask."""

    entries: Entries
    hits: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """One rule's verdict on the call."""

    rule: Rule
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcomes for one descriptor. Empty if no rule matches, or if Redis is down and the matching rules are open."""

    outcomes: tuple[Outcome, ...] = ()
    denied_unmatched: bool = False

    @property
    def admitted(self) -> bool:
        return not self.denied_unmatched and all(outcome.verdict.admits for outcome in self.outcomes)


@dataclass(frozen=True, slots=True)
class Decision:
    """One answer per descriptor, in order. The call passes if all admit it."""

    answers: tuple[Answer, ...]

    @property
    def admitted(self) -> bool:
        return all(answer.admitted for answer in self.answers)


def tightest(outcomes: Sequence[Outcome]) -> Outcome | None:
    """The outcome that a client must obey: the longest refusal, else the bucket with the fewest tokens."""

    def looseness(outcome: Outcome) -> tuple[bool, int]:
        verdict = outcome.verdict
        return verdict.admits, verdict.remaining if verdict.admits else -verdict.wait

    return min(outcomes, key=looseness, default=None)


class Buckets:
    """Checks calls against the rules in force."""

    def __init__(self, store: BucketStore, rules: Callable[[], RuleSet], *, redis_seconds: float) -> None:
        self._store = store
        self._rules = rules
        self._redis_seconds = redis_seconds
        self._redis_answers = True

    async def check(self, domain: str, descriptors: Sequence[Descriptor], *, remaining: float | None) -> Decision:
        """Debit every matching bucket, or none if one refuses. `remaining` is the caller's deadline in seconds, if any.

        Raises InvalidArgument for a call without domain or descriptors, DeadlineExceeded if the deadline is too near for an answer,
        and BucketsUnreachable if Redis is down and a matching rule is closed.
        """
        _require(domain, descriptors)
        seconds = self._redis_seconds if remaining is None else min(self._redis_seconds, remaining - _KEEP_SECONDS)
        if seconds <= 0:
            raise DeadlineExceeded
        rules = self._rules()
        matched = [rules.matching(domain, descriptor.entries) for descriptor in descriptors]
        if rules.on_no_match is OnNoMatch.DENY and not all(matched):
            # Debit nothing for a call that is refused anyway.
            return Decision(tuple(Answer(denied_unmatched=not applying) for applying in matched))
        named = [
            [(rule, rules.bucket(rule, descriptor.entries)) for rule in applying]
            for descriptor, applying in zip(descriptors, matched, strict=True)
        ]
        verdicts = await self._take(_charges(descriptors, named), seconds)
        if verdicts is None:
            return _without_redis(matched)
        return Decision(tuple(Answer(tuple(Outcome(rule, verdicts[key]) for rule, key in each)) for each in named))

    async def _take(self, charges: dict[str, Charge], seconds: float) -> dict[str, Verdict] | None:
        """The verdicts by key; None if Redis does not answer in time. The charges may have been debited even so."""
        if not charges:
            return {}
        try:
            async with asyncio.timeout(seconds):
                taken = await self._store.take(list(charges.values()))
        except (redis.exceptions.RedisError, OSError, TimeoutError) as error:
            if self._redis_answers:
                log.error(
                    "the buckets cannot be reached, each rule's on_redis_down applies: %s",
                    str(error) or "no answer in time",
                )
            self._redis_answers = False
            return None
        if not self._redis_answers:
            log.info("the buckets can be reached again")
        self._redis_answers = True
        return dict(zip(charges, taken.verdicts, strict=True))


def _charges(descriptors: Sequence[Descriptor], named: Sequence[Sequence[tuple[Rule, str]]]) -> dict[str, Charge]:
    """The charges by key. Two descriptors of a call may share a bucket, which must then hold enough for both."""
    charges: dict[str, Charge] = {}
    for descriptor, buckets in zip(descriptors, named, strict=True):
        for rule, key in buckets:
            before = charges[key].hits if key in charges else 0
            charges[key] = Charge(key, rule.limit, before + descriptor.hits)
    return charges


def _without_redis(matched: Sequence[tuple[Rule, ...]]) -> Decision:
    """Fail open or closed as each rule says: guessing and computing time must not become free, reading must not stop.

    A closed rule is an error and not a refusal (429), because the client has exceeded nothing. Envoy turns the error into 503 where
    its own failure mode denies, which holds for the same classes when this whole service does not answer.
    """
    if any(rule.on_redis_down is OnRedisDown.CLOSED for applying in matched for rule in applying):
        raise BucketsUnreachable
    return Decision(tuple(Answer() for _ in matched))


def _require(domain: str, descriptors: Sequence[Descriptor]) -> None:
    violations = []
    if not domain:
        violations.append(Violation("domain", "is empty; it names the rules' domain", "REQUIRED"))
    if not descriptors:
        violations.append(Violation("descriptors", "is empty; there is nothing to limit by", "REQUIRED"))
    if violations:
        raise InvalidArgument(violations)
