"""What every store of reservations promises, over each of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import pytest
from redis.asyncio import Redis

from services.ratelimit.model import MICROSECONDS, Charge, Limit, State, Window, take
from services.ratelimit.model.reservations import Debit, Part, Settled, Stage
from services.ratelimit.store.buckets import RedisBucketStore
from services.ratelimit.store.reservations import MemoryReservationStore, RedisReservationStore, ReservationStore
from tests.waiting import until

TTL = 3600.0
DAY = 86_400 * MICROSECONDS
SLOW = Limit(requests=1, period_seconds=3600, burst=100)
RECORD = "ratelimit:{t}:%reservation:r"


def now() -> int:
    return time.time_ns() // 1000


class Held(Protocol):
    """A store of reservations, and the same buckets as checks see them."""

    @property
    def reservations(self) -> ReservationStore: ...

    def remaining(self, charge: Charge) -> int: ...


class InMemory:
    def __init__(self) -> None:
        self.states: dict[str, State] = {}
        self.reservations = MemoryReservationStore(now, self.states)

    def remaining(self, charge: Charge) -> int:
        (verdict,) = take([charge], [self.states.get(charge.key)], at=now()).verdicts
        return verdict.remaining


class InRedis:
    def __init__(self, redis: Redis, buckets: RedisBucketStore) -> None:
        self.redis = redis
        self.reservations = RedisReservationStore(redis)
        self.buckets = buckets

    def remaining(self, charge: Charge) -> int:
        (taken,) = self.buckets.take([[charge]], seconds=10)
        return taken.verdicts[0].remaining


@pytest.fixture(params=["memory", "redis"])
def held(request: pytest.FixtureRequest) -> Held:
    if request.param == "memory":
        return InMemory()
    return InRedis(request.getfixturevalue("limiter_redis"), request.getfixturevalue("store"))


def today(requests: int = 100) -> Window:
    start = now() // DAY * DAY
    return Window(requests, start, start + DAY, start + 2 * DAY)


def yesterday(requests: int = 100) -> Window:
    """As planned by a process whose clock is a day behind the store's."""
    start = now() // DAY * DAY - DAY
    return Window(requests, start, start + DAY, start + 2 * DAY)


LIMITS: Sequence[Callable[[], Limit | Window]] = (lambda: SLOW, today)
both = pytest.mark.parametrize("limit_of", LIMITS, ids=["bucket", "quota"])


def part(limit: Limit | Window, hits: int, name: str = "a", *, binding: bool = True) -> Part:
    return Part(Charge(f"ratelimit:{{t}}:{name}", limit, hits), binding)


def look(limit: Limit | Window, name: str = "a") -> Charge:
    return Charge(f"ratelimit:{{t}}:{name}", limit, 0)


async def reserve(held: Held, limit: Limit | Window, amount: int, record: str = RECORD) -> bool:
    reserved = await held.reservations.reserve(record, f"f{amount}", amount, [part(limit, amount)], ttl_seconds=TTL)
    assert reserved.taken is not None
    return reserved.admitted


@both
@pytest.mark.parametrize(("used", "left"), [(60, 40), (10, 90), (0, 100), (100, 0), (250, 0)])
async def test_a_commit_leaves_what_was_not_used(
    held: Held, limit_of: Callable[[], Limit], used: int, left: int
) -> None:
    limit = limit_of()
    assert await reserve(held, limit, 60)
    assert held.remaining(look(limit)) == 40
    assert await held.reservations.settle(RECORD, Stage.COMMITTED, used) == Settled(Stage.COMMITTED, used)
    assert held.remaining(look(limit)) == left


@both
async def test_a_refund_gives_all_back_and_only_once(held: Held, limit_of: Callable[[], Limit]) -> None:
    limit = limit_of()
    assert await reserve(held, limit, 60)
    assert await reserve(held, limit, 30, "ratelimit:{t}:%reservation:other")
    for _ in range(2):
        assert await held.reservations.settle(RECORD, Stage.REFUNDED, 0) == Settled(Stage.REFUNDED, 0)
        assert held.remaining(look(limit)) == 70


@both
async def test_what_has_ended_is_answered_as_it_ended(held: Held, limit_of: Callable[[], Limit]) -> None:
    limit = limit_of()
    await reserve(held, limit, 60)
    await held.reservations.settle(RECORD, Stage.COMMITTED, 20)
    for stage, used in ((Stage.COMMITTED, 20), (Stage.COMMITTED, 50), (Stage.REFUNDED, 0)):
        assert await held.reservations.settle(RECORD, stage, used) == Settled(Stage.COMMITTED, 20)
    assert held.remaining(look(limit)) == 80


@both
async def test_a_key_that_is_known_takes_nothing_again(held: Held, limit_of: Callable[[], Limit]) -> None:
    limit = limit_of()
    await reserve(held, limit, 60)
    again = await held.reservations.reserve(RECORD, "other", 40, [part(limit, 40)], ttl_seconds=TTL)
    assert (again.taken, again.stage, again.fingerprint) == (None, Stage.RESERVED, "f60")
    assert held.remaining(look(limit)) == 40


@both
async def test_a_refused_reservation_takes_nothing_and_leaves_no_record(
    held: Held, limit_of: Callable[[], Limit]
) -> None:
    limit = limit_of()
    parts = [part(limit, 60), part(limit, 101, "b")]
    refused = await held.reservations.reserve(RECORD, "f", 1, parts, ttl_seconds=TTL)
    assert not refused.admitted
    assert held.remaining(look(limit)) == 100
    assert await held.reservations.settle(RECORD, Stage.COMMITTED, 1) is None


@both
async def test_a_bucket_in_shadow_mode_refuses_nothing_and_gets_back_only_what_it_gave(
    held: Held, limit_of: Callable[[], Limit]
) -> None:
    limit = limit_of()
    parts = [part(limit, 60), part(limit, 101, "b", binding=False), part(limit, 5, "c", binding=False)]
    assert (await held.reservations.reserve(RECORD, "f", 1, parts, ttl_seconds=TTL)).admitted
    assert [held.remaining(look(limit, name)) for name in "abc"] == [40, 100, 95]
    await held.reservations.settle(RECORD, Stage.REFUNDED, 0)
    assert [held.remaining(look(limit, name)) for name in "abc"] == [100, 100, 100]


async def test_a_refund_after_its_period_gives_the_next_one_nothing(held: Held) -> None:
    """The store's clock decides in which period it is, so a plan of yesterday takes from today's quota."""
    assert await reserve(held, yesterday(), 60)
    assert held.remaining(look(today())) == 40
    if isinstance(held, InRedis):
        await held.redis.set(look(today()).key, f"{now() // DAY * DAY + 5 * DAY}:70", px=100_000)
    elif isinstance(held, InMemory):
        held.states[look(today()).key] = (now() // DAY * DAY + 5 * DAY, 70)
    before = await _state(held)
    await held.reservations.settle(RECORD, Stage.REFUNDED, 0)
    assert await _state(held) == before


async def _state(held: Held) -> object:
    if isinstance(held, InRedis):
        return await held.redis.get(look(today()).key)
    assert isinstance(held, InMemory)
    return held.states[look(today()).key]


async def test_after_a_quotas_state_is_lost_a_refund_makes_none(held: Held) -> None:
    limit = today()
    await reserve(held, limit, 60)
    if isinstance(held, InRedis):
        await held.redis.delete(look(limit).key)
    elif isinstance(held, InMemory):
        held.states.clear()
    await held.reservations.settle(RECORD, Stage.COMMITTED, 10)
    assert held.remaining(look(limit)) == 100


def test_a_bucket_gets_back_only_what_has_not_come_back_by_itself() -> None:
    """The case that matters: it was full again, and others have emptied it, so a whole refund would let twice as much through."""
    fast = Limit(requests=10, period_seconds=1, burst=10)
    debit = Debit("k", fast.interval, fast.capacity, 10 * fast.interval, 0)
    at = 10 * MICROSECONDS
    emptied = at + fast.capacity
    assert debit.settled(emptied, 0, reserved_at=at, at=at) is None
    assert debit.settled(emptied, 0, reserved_at=at - MICROSECONDS, at=at) == emptied
    assert debit.settled(emptied, 0, reserved_at=at - MICROSECONDS // 2, at=at) == emptied - fast.capacity // 2
    assert debit.settled(emptied, 0, reserved_at=at + DAY, at=at) is None, "a clock that was set back"


async def test_what_came_back_by_itself_is_not_given_back_by_the_script(limiter_redis: Redis) -> None:
    store, fast = RedisReservationStore(limiter_redis), Limit(requests=1, period_seconds=3600, burst=10)
    await store.reserve(RECORD, "f", 10, [part(fast, 10)], ttl_seconds=TTL)
    five_hours = 5 * 3600 * MICROSECONDS
    reserved_at = int(await limiter_redis.hget(RECORD, "at") or 0)
    await limiter_redis.hset(RECORD, "at", str(reserved_at - five_hours))
    await store.settle(RECORD, Stage.REFUNDED, 0)
    reserved = await store.reserve(f"{RECORD}2", "f", 6, [part(fast, 6)], ttl_seconds=TTL)
    assert not reserved.admitted
    assert (await store.reserve(f"{RECORD}2", "f", 4, [part(fast, 4)], ttl_seconds=TTL)).admitted


async def test_an_expired_reservation_stays_spent(held: Held) -> None:
    reserved = await held.reservations.reserve(RECORD, "f", 60, [part(SLOW, 60)], ttl_seconds=0.05)
    assert reserved.admitted

    async def expired() -> bool:
        # The other key is taken for as long as the record lasts: nothing is asked that would end it.
        again = await held.reservations.reserve(RECORD, "f", 101, [part(SLOW, 101)], ttl_seconds=TTL)
        return again.taken is not None

    await until(expired)
    assert await held.reservations.settle(RECORD, Stage.REFUNDED, 0) is None
    assert held.remaining(look(SLOW)) == 40


async def test_many_callers_of_two_replicas_reserve_no_more_than_there_is(
    limiter_redis: Redis, store: RedisBucketStore
) -> None:
    replicas = [RedisReservationStore(limiter_redis), RedisReservationStore(limiter_redis)]
    limit = today(100)

    async def spend(number: int) -> int:
        """Return what was really used."""
        mine, record = replicas[number % 2], f"{RECORD}{number}"
        reserved = await mine.reserve(record, "f", 7, [part(limit, 7)], ttl_seconds=TTL)
        if not reserved.admitted:
            return 0
        if number % 3 == 0:
            await asyncio.gather(*(each.settle(record, Stage.REFUNDED, 0) for each in replicas))
            return 0
        await asyncio.gather(*(each.settle(record, Stage.COMMITTED, 5) for each in replicas))
        return 5

    used = sum(await asyncio.gather(*map(spend, range(64))))
    assert 0 < used <= 100
    assert InRedis(limiter_redis, store).remaining(look(limit)) == 100 - used
