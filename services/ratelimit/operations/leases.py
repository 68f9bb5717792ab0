"""Leases: places of which only so many may be held at a time, by the rules with `concurrency`."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import redis.exceptions
from opentelemetry.metrics import CallbackOptions, Observation

from kit.runtime.metrics import Metrics

from ..errors import BucketsUnreachable, RateLimited
from ..model import MICROSECONDS
from ..model.leases import Act, LeaseCall, LeaseState, Place
from ..model.rules import Entries, LeaseRule, OnRedisDown, RuleSet
from ..store.leases import LeaseStore

log = logging.getLogger(__name__)

GRANTED, REFUSED, LOST = "granted", "refused", "lost"


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease as its holder names it."""

    domain: str
    descriptors: tuple[Entries, ...]
    key: str


@dataclass(frozen=True, slots=True)
class Renewed:
    """What became of a lease that was to be renewed."""

    lost: bool
    ttl: timedelta | None = None
    """None for one that was lost, and for one that no rule counts any more."""


class Leases:
    """Grants, renews and ends leases by the rules in force."""

    def __init__(self, store: LeaseStore, rules: Callable[[], RuleSet], *, redis_seconds: float) -> None:
        self._store = store
        self._rules = rules
        self._redis_seconds = redis_seconds
        self._counts = Counter[tuple[str, str, str]]()

    async def acquire(self, lease: Lease) -> timedelta | None:
        """Hold the lease from now on, or anew; return for how long, or None if it is not counted.

        Raises RateLimited with `retry_after` when no place is free, and BucketsUnreachable while Redis is away if a rule is closed.
        """
        rules = self._bounding(lease)
        if not rules:
            return None
        call = _call(Act.ACQUIRE, lease, rules)
        try:
            (state,) = await self._apply([call])
        except BucketsUnreachable:
            if any(rule.on_redis_down is OnRedisDown.CLOSED for rule in rules.values()):
                raise
            return None
        if not state.held:
            refusing = rules[call.places[state.refusing].key]
            self._counts[refusing.domain, refusing.name, REFUSED] += 1
            raise RateLimited(retry_after=timedelta(microseconds=state.wait), rule=refusing.name)
        self._count(rules, GRANTED)
        return _ttl(rules)

    async def renew(self, leases: Sequence[Lease]) -> list[Renewed]:
        """Let leases last anew, in their order. Raises BucketsUnreachable while Redis is away."""
        rules = [self._bounding(lease) for lease in leases]
        calls = [_call(Act.RENEW, lease, of_lease) for lease, of_lease in zip(leases, rules, strict=True)]
        renewed = []
        for of_lease, state in zip(rules, await self._apply(calls), strict=True):
            if not state.held:
                self._count(of_lease, LOST)
            renewed.append(Renewed(lost=not state.held, ttl=_ttl(of_lease) if state.held and of_lease else None))
        return renewed

    async def release(self, leases: Sequence[Lease]) -> None:
        """End leases. Raises BucketsUnreachable while Redis is away."""
        await self._apply([_call(Act.RELEASE, lease, self._bounding(lease)) for lease in leases])

    def show_in(self, metrics: Metrics) -> None:
        """Show what became of leases, by the rules in force."""
        metrics.meter.create_observable_counter(
            "storymesh_rate_limit_leases",
            [self._observe],
            description="Leases by rule: granted, refused, or lost before they were renewed.",
        )

    def _observe(self, _options: CallbackOptions) -> list[Observation]:
        return [
            Observation(
                self._counts[rule.domain, rule.name, how], {"domain": rule.domain, "rule": rule.name, "verdict": how}
            )
            for rule in self._rules().leases
            for how in (GRANTED, REFUSED, LOST)
        ]

    def _count(self, rules: dict[str, LeaseRule], how: str) -> None:
        for rule in rules.values():
            self._counts[rule.domain, rule.name, how] += 1

    def _bounding(self, lease: Lease) -> dict[str, LeaseRule]:
        """The rules by the keys of the lease's places."""
        domain = self._rules().of(lease.domain)
        return {rule.bucket(each): rule for each in lease.descriptors for rule in domain.matching_leases(each)}

    async def _apply(self, calls: Sequence[LeaseCall]) -> list[LeaseState]:
        try:
            async with asyncio.timeout(self._redis_seconds):
                return await self._store.apply(calls)
        except (redis.exceptions.RedisError, OSError) as error:
            log.warning("leases cannot be reached: %s", error or type(error).__name__)
            raise BucketsUnreachable from None


def _call(act: Act, lease: Lease, rules: dict[str, LeaseRule]) -> LeaseCall:
    places = tuple(Place(key, rule.most, rule.ttl_seconds * MICROSECONDS) for key, rule in rules.items())
    return LeaseCall(act, lease.key, places)


def _ttl(rules: dict[str, LeaseRule]) -> timedelta:
    return timedelta(seconds=min(rule.ttl_seconds for rule in rules.values()))
