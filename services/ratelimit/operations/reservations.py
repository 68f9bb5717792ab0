"""Reservations: tokens for what has its cost known only afterwards, from the buckets and quotas of the rules."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from time import time_ns
from typing import TypeVar

import redis.exceptions

from ..errors import (
    BucketsUnreachable,
    RateLimited,
    ReservationKeyReused,
    ReservationNotFound,
    ReservationSettled,
    Unsatisfiable,
)
from ..model.decisions import Answer, Decision, Descriptor, Outcome
from ..model.reservations import Part, Settled, Stage
from ..model.rules import Entries, RuleSet
from ..store.local_buckets import LocalBuckets
from ..store.reservations import ReservationStore
from .planning import Check, Plan

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request for a reservation."""

    domain: str
    descriptors: tuple[Entries, ...]
    key: str
    amount: int
    ttl: timedelta

    @property
    def fingerprint(self) -> str:
        """Tells requests apart that come with one key."""
        return sha256(repr((self.descriptors, self.amount)).encode()).hexdigest()


class Reservations:
    """Reserves tokens by the rules in force, and settles what was reserved."""

    def __init__(
        self,
        store: ReservationStore,
        rules: Callable[[], RuleSet],
        *,
        redis_seconds: float,
        clock: Callable[[], int] = lambda: time_ns() // 1000,
    ) -> None:
        """`clock` returns microseconds since 1970, as that of `Buckets`."""
        self._store = store
        self._rules = rules
        self._redis_seconds = redis_seconds
        self._clock = clock
        self._local = LocalBuckets(clock)

    async def reserve(self, wanted: Wanted) -> bool:
        """Take the tokens; False if none were taken, because no rule counts them or Redis is away.

        Raises RateLimited with `retry_after`, Unsatisfiable, ReservationKeyReused, ReservationSettled, InvalidArgument, and
        BucketsUnreachable while Redis is away and a rule is closed.
        """
        rules = self._rules()
        # What no rule matches is not counted: `on_no_match` is for the calls that the edge asks about.
        matched = [entries for entries in wanted.descriptors if rules.matching(wanted.domain, entries)]
        if not matched:
            return False
        plan = Check(wanted.domain, [Descriptor(each, wanted.amount) for each in matched]).plan(rules, self._clock())
        _refuse_unless_admitted(plan.without_buckets)
        parts = [Part(charge, not plan.domain.shadow) for charge in plan.charges]
        parts += [Part(charge, binding=False) for charge in plan.shadow]
        if not parts:
            return False
        record, fingerprint = _record(wanted.domain, wanted.key), wanted.fingerprint
        try:
            reserved = await self._asked(
                self._store.reserve(record, fingerprint, wanted.amount, parts, ttl_seconds=wanted.ttl.total_seconds())
            )
        except BucketsUnreachable:
            self._without_redis(plan)
            return False
        if reserved.taken is None:
            if reserved.fingerprint != fingerprint:
                raise ReservationKeyReused
            if reserved.stage is not Stage.RESERVED:
                raise ReservationSettled(stage=reserved.stage)
        elif not reserved.admitted:
            _refuse_unless_admitted(plan.decided(dict(enumerate(reserved.taken.verdicts))))
        return True

    async def commit(self, domain: str, key: str, amount: int) -> None:
        """Settle a reservation with what was used.

        Raises ReservationNotFound, ReservationSettled, and BucketsUnreachable while Redis is away.
        """
        await self._settle(domain, key, Settled(Stage.COMMITTED, amount))

    async def refund(self, domain: str, key: str) -> None:
        """Give a reservation back. Raises as `commit`."""
        await self._settle(domain, key, Settled(Stage.REFUNDED, 0))

    async def _settle(self, domain: str, key: str, wish: Settled) -> None:
        settled = await self._asked(self._store.settle(_record(domain, key), wish.stage, wish.used))
        if settled is None:
            raise ReservationNotFound
        if settled != wish:
            raise ReservationSettled(stage=settled.stage)

    def _without_redis(self, plan: Plan) -> None:
        """Do as the rules say while Redis is away. Raises BucketsUnreachable, and RateLimited by the process's own buckets."""
        if plan.closed:
            raise BucketsUnreachable
        if plan.local:
            verdicts = self._local.take([charge for _, charge in plan.local])
            _refuse_unless_admitted(plan.decided(dict(zip([place for place, _ in plan.local], verdicts, strict=True))))

    async def _asked(self, answer: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._redis_seconds):
                return await answer
        except (redis.exceptions.RedisError, OSError) as error:
            log.warning("reservations cannot be reached: %s", error or type(error).__name__)
            raise BucketsUnreachable from None


def _refuse_unless_admitted(decision: Decision) -> None:
    """Raises RateLimited or Unsatisfiable by the rule that refuses for longest."""
    outcomes = [each for answer in decision.answers for each in answer.outcomes if not each.admits]
    if decision.shadow or not outcomes:
        return
    longest = max(outcomes, key=_wait)
    if decision._replace(answers=(Answer(tuple(outcomes)),)).permanent or longest.verdict is None:
        never = next((each for each in outcomes if each.permanent), longest)
        raise Unsatisfiable(rule=never.rule.name)
    raise RateLimited(retry_after=timedelta(microseconds=longest.verdict.wait), rule=longest.rule.name)


def _wait(outcome: Outcome) -> int:
    return outcome.verdict.wait if outcome.verdict else 0


def _record(domain: str, key: str) -> str:
    """The record's key in Redis, beside the domain's buckets. No rule has a name that begins with a percent sign."""
    return f"ratelimit:{{{domain}}}:%reservation:{sha256(key.encode()).hexdigest()}"
