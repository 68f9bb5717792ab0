"""Checks whether calls may pass, by all rules that match any of their descriptors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from time import monotonic, time_ns
from typing import NamedTuple

import redis.exceptions

from kit.errors import DeadlineExceeded, Internal, MeshError

from ..errors import BucketsUnreachable
from ..model import Charge, Taken
from ..model.decisions import Decision, Descriptor
from ..model.rules import RuleSet
from ..store import BucketStore
from ..store.local_buckets import LocalBuckets
from .planning import Check, Passed, Plan
from .recording import Recorder
from .refusals import RefusalCounts
from .rule_counts import RuleCounts

log = logging.getLogger(__name__)

_KEEP_SECONDS = 0.01
"""Subtracted from a caller's deadline, so that the answer without Redis still reaches the caller."""


_UNASKED = Taken(0)


class Asking(NamedTuple):
    """A check, and the seconds until its caller's deadline, if there is one."""

    check: Check
    remaining: float | None


class Buckets:
    """Checks calls against the rules in force, many at a time, for one thread at a time."""

    def __init__(
        self,
        store: BucketStore,
        rules: Callable[[], RuleSet],
        *,
        redis_seconds: float,
        clock: Callable[[], int] = lambda: time_ns() // 1000,
    ) -> None:
        """`clock` returns microseconds since 1970. It only says which period of a quota is near: Redis's own clock decides."""
        self.counts = RuleCounts(rules)
        self.refusals = RefusalCounts()
        self.recorder = Recorder()
        self._store = store
        self._local = LocalBuckets(clock)
        self.clock = clock
        self._rules = rules
        self._redis_seconds = redis_seconds
        self._redis_answers = True

    def check(self, domain: str, descriptors: Sequence[Descriptor], *, remaining: float | None) -> Decision:
        """Check one call; raises what `check_many` would answer."""
        (answer,) = self.check_many([Asking(Check(domain, descriptors), remaining)])
        if isinstance(answer, MeshError):
            raise answer
        return answer.decision() if isinstance(answer, Passed) else answer

    def check_many(self, asking: Sequence[Asking]) -> list[Passed | Decision | MeshError]:
        """Decide calls in their order; debit every matching bucket of a call, or none if one refuses.

        An answer is InvalidArgument for a call that cannot be checked, DeadlineExceeded if its deadline is too near for an answer,
        and BucketsUnreachable if Redis is down and a matching rule is closed. Calls are answered before the nearest of their
        deadlines, or after at most twice the time until then.
        """
        rules, begun, at = self._rules(), monotonic(), self.clock()
        if self.recorder.left:
            self.recorder.add(at, [each.check for each in asking])
        answers: list[Passed | Decision | MeshError] = []
        waiting: list[tuple[float, int, Plan]] = []
        for number, (check, remaining) in enumerate(asking):
            seconds = self._redis_seconds if remaining is None else min(self._redis_seconds, remaining - _KEEP_SECONDS)
            try:
                plan = check.plan(rules, at)
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
            if plan.charges or plan.shadow:
                waiting.append((seconds, number, plan))
        for group in _by_urgency(waiting):
            deadline = begun + group[0][0]
            taken = self._take([plan.charges for _, _, plan in group], deadline - monotonic())
            if taken is None:
                for _, number, plan in group:
                    answers[number] = self._without_redis(plan)
                continue
            shadowed = False
            for (_, number, plan), each in zip(group, taken, strict=True):
                if plan.plain and each.admitted:
                    answers[number] = Passed(plan, each)
                    continue
                answers[number] = plan.decision(each)
                shadowed = shadowed or bool(plan.shadow)
            if shadowed:
                self._ask_in_shadow(group, taken, answers, deadline)
        self._count(asking, answers)
        return answers

    def _count(self, asking: Sequence[Asking], answers: Sequence[Passed | Decision | MeshError]) -> None:
        passed: dict[int, tuple[Plan, int]] = {}
        for number, answer in enumerate(answers):
            if isinstance(answer, Passed):
                # Equal calls mostly share their plan, and are counted together.
                plan = answer.plan
                passed[id(plan)] = plan, passed[id(plan)][1] + 1 if id(plan) in passed else 1
            elif isinstance(answer, Decision):
                self.counts.add(answer)
                self.refusals.add(asking[number].check.descriptors, answer)
        for plan, calls in passed.values():
            self.counts.add_admitted([rule for rules in plan.counted or () for rule, _ in rules], calls)

    def _ask_in_shadow(
        self,
        group: Sequence[tuple[float, int, Plan]],
        taken: Sequence[Taken],
        answers: list[Passed | Decision | MeshError],
        deadline: float,
    ) -> None:
        """Add to the decisions what rules in shadow mode say of the calls that pass."""
        passed = [(number, plan, each) for (_, number, plan), each in zip(group, taken, strict=True) if each.admitted]
        charges = [(charge,) for _, plan, _ in passed for charge in plan.shadow]
        said = self._take(charges, deadline - monotonic()) if charges else None
        if said is None:
            return
        each_said = iter(said)
        for number, plan, each in passed:
            answers[number] = plan.decision(each, [next(each_said) for _ in plan.shadow])

    def _without_redis(self, plan: Plan) -> Decision | MeshError:
        if plan.closed:
            return BucketsUnreachable()
        if not plan.local:
            return plan.without_buckets
        together = {place: charge for place, charge in plan.local if place < len(plan.charges)}
        verdicts = dict(zip(together, self._local.take(list(together.values())), strict=True))
        if all(verdict.admits for verdict in verdicts.values()):
            for place, charge in plan.local:
                if place not in together:
                    # In shadow mode, so that it is asked by itself.
                    (verdicts[place],) = self._local.take([charge])
        return plan.decided(verdicts)

    def _take(self, calls: Sequence[tuple[Charge, ...]], seconds: float) -> list[Taken] | None:
        """The results; None if Redis does not answer in time. The calls may have been debited even so.

        A call without charges, of which only rules in shadow mode speak, passes unasked.
        """
        try:
            asked = iter(self._store.take([charges for charges in calls if charges], seconds=seconds))
        except (redis.exceptions.RedisError, OSError) as error:
            if self._redis_answers:
                log.error("the buckets cannot be reached, each rule's on_redis_down applies: %s", error)
            self._redis_answers = False
            return None
        if not self._redis_answers:
            log.info("the buckets can be reached again")
        self._redis_answers = True
        return [next(asked) if charges else _UNASKED for charges in calls]


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
