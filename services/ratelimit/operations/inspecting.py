"""What administrators ask of buckets: why a call was refused, what the buckets hold, and that they be full again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from uuid import UUID

from kit.errors import InvalidArgument, Violation
from kit.runtime.clock import Clock, unix_milliseconds
from kit.runtime.own_thread import OwnThread

from ..model import Charge, Taken
from ..model.administration import Act, Change, ExplainedCall, ExplainedDescriptor, ExplainedRule, Level
from ..model.decisions import Decision, Outcome, tightest
from ..model.quotas import Quota
from ..model.rules import Action, Entries, Rule, RuleSet
from ..store import ResettableStore
from ..store.administration import AdminStore
from . import metadata
from .explaining import applications
from .planning import Plan
from .subjects import Call, Subject, calls_of

log = logging.getLogger(__name__)

_REDIS_SECONDS = 2.0


class Inspection:
    """Looks at buckets and fills them, apart from the checks: by a store of its own, which blocks in a thread."""

    def __init__(
        self,
        store: ResettableStore,
        admin: AdminStore,
        rules: Callable[[], RuleSet],
        classes: Sequence[str],
        clock: Clock,
    ) -> None:
        self._store = store
        self._admin = admin
        self._rules = rules
        self._classes = classes
        self._clock = clock
        self._thread = OwnThread("inspection")

    async def explain(self, subject: Subject) -> list[ExplainedCall]:
        """What the limiter says now of the subject's call, in each class. Raises InvalidArgument, RedisError and OSError."""
        rules, now = self._rules(), unix_milliseconds(self._clock()) * 1000
        return [await self._explained(call, rules, now) for call in calls_of(subject, self._classes)]

    async def inspect(self, subject: Subject) -> list[Level]:
        """The buckets of the subject. Raises InvalidArgument, RedisError and OSError."""
        return await self._levels(self._counting(subject))

    async def reset(self, administrator_id: UUID, subject: Subject, rule: str, reason: str) -> int:
        """Fill the subject's buckets, or that of one rule; returns how many were not full.

        Raises InvalidArgument also for a rule that does not match; RedisError and OSError.
        """
        keys = [key for key, (counting, _) in self._counting(subject).items() if not rule or counting.name == rule]
        if rule and not keys:
            raise InvalidArgument([Violation("rule", "is no rule that counts calls of the subject", "STRING_IN")])
        forgotten = await self._thread.run(self._store.forget, keys, seconds=_REDIS_SECONDS)
        told = f"{subject} rule={rule}" if rule else str(subject)
        await self._admin.record(Change(Act.RESET, administrator_id, reason, told))
        # The subject may be an address, which no log may have.
        log.info("%d buckets are full again, by %s: %s", forgotten, administrator_id, reason)
        return forgotten

    def _counting(self, subject: Subject) -> dict[str, tuple[Rule, Charge]]:
        """By key, the buckets of every rule that matches the subject, and a charge that only looks."""
        rules, now = self._rules(), unix_milliseconds(self._clock()) * 1000
        found = {}
        for call in calls_of(subject, self._classes):
            call.check.plan(rules, now)
            for descriptor in call.check.descriptors:
                for rule in rules.of(call.check.domain).rules:
                    if rule.limit is None or 0 < rule.ends_at <= now:
                        continue
                    if rule.matches(descriptor.entries):
                        look = _look(rule, descriptor.entries, now)
                        found[look.key] = rule, look
        return found

    async def _levels(self, looks: dict[str, tuple[Rule, Charge]]) -> list[Level]:
        if not looks:
            return []
        calls = [(look,) for _, look in looks.values()]
        taken = await self._thread.run(self._store.take, calls, seconds=_REDIS_SECONDS)
        return [Level(rule, key, each) for (key, (rule, _)), each in zip(looks.items(), taken, strict=True)]

    async def _explained(self, call: Call, rules: RuleSet, now: int) -> ExplainedCall:
        plan = call.check.plan(rules, now)
        descriptors = call.check.descriptors
        matching = applications(plan.domain, descriptors, now)
        looks = {}
        for descriptor, each in zip(descriptors, matching, strict=True):
            for rule, _ in each:
                if rule.limit is not None:
                    look = _look(rule, descriptor.entries, now)
                    looks[look.key] = rule, look
        levels = {level.key: level for level in await self._levels(looks)}
        decision = _decision(plan, levels)
        outcomes = [outcome for answer in decision.answers for outcome in answer.outcomes]
        deciding, _ = metadata.of(decision, tightest(outcomes), decision.admitted)
        exceeded = {outcome.rule.name for outcome in outcomes if outcome.exceeded}
        explained = []
        for descriptor, each, denied in zip(descriptors, matching, plan.unmatched, strict=True):
            explained.append(
                ExplainedDescriptor(
                    descriptor.entries,
                    tuple(
                        ExplainedRule(
                            rule,
                            why_not,
                            not why_not and (rule.name in exceeded or rule.action is Action.BLOCK),
                            None if rule.limit is None else levels[rule.bucket(descriptor.entries)],
                        )
                        for rule, why_not in each
                    ),
                    denied,
                )
            )
        return ExplainedCall(
            call.rate_limit_class,
            decision.admitted,
            decision.permanent,
            None if decision.admitted or decision.permanent else max(_passing(outcomes, list(levels.values()))),
            deciding.rule if deciding else None,
            plan.domain.shadow,
            tuple(explained),
        )


def _look(rule: Rule, entries: Entries, now: int) -> Charge:
    """A charge of no hits to the rule's bucket."""
    limit = rule.limit.window(now) if isinstance(rule.limit, Quota) else rule.limit
    if limit is None:
        raise ValueError(f"{rule.name} does not count")
    return Charge(rule.bucket(entries), limit, 0)


def _decision(plan: Plan, levels: dict[str, Level]) -> Decision:
    """The decision that the call would get, by what the buckets hold: the same arithmetic, and nothing is debited."""

    def taken(charges: Sequence[Charge]) -> Taken:
        looks = [levels[charge.key].look for charge in charges]
        at = looks[0].at if looks else 0
        return Taken(at, charges, [look.owed[0] for look in looks])

    if not plan.charges and not plan.shadow:
        return plan.without_buckets
    together = taken(plan.charges)
    return plan.decision(together, [taken([each]) for each in plan.shadow] if together.admitted else ())


def _passing(outcomes: Sequence[Outcome], levels: Sequence[Level]) -> Iterator[int]:
    """For each rule that refuses, when it would admit the call."""
    at = max((level.look.at for level in levels), default=0)
    for outcome in outcomes:
        if outcome.rule.action is Action.BLOCK and outcome.rule.asks:
            yield outcome.rule.ends_at
        elif outcome.verdict is not None and outcome.verdict.wait > 0 and outcome.rule.asks:
            yield at + outcome.verdict.wait
