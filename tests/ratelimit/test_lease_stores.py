"""What every store of leases promises, over each of them, compared with the arithmetic."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from kit.data import redis as kit_redis
from local.harness import Servers
from services.ratelimit.model import MICROSECONDS
from services.ratelimit.model.leases import Act, LeaseCall, LeaseState, Place, apply_in_order
from services.ratelimit.store.leases import MOST_CALLS, LeaseStore, MemoryLeaseStore, RedisLeaseStore
from tests.waiting import until

HOUR = 3600 * MICROSECONDS


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> LeaseStore:
    if request.param == "memory":
        return MemoryLeaseStore(lambda: time.time_ns() // 1000)
    return RedisLeaseStore(request.getfixturevalue("limiter_redis"))


def place(name: str = "a", most: int = 2, ttl: int = HOUR, *, domain: str = "t") -> Place:
    return Place(f"ratelimit:{{{domain}}}:{name}", most, ttl)


def acquire(holder: str, *places: Place) -> LeaseCall:
    return LeaseCall(Act.ACQUIRE, holder, places or (place(),))


def renew(holder: str, *places: Place) -> LeaseCall:
    return LeaseCall(Act.RENEW, holder, places or (place(),))


def release(holder: str, *places: Place) -> LeaseCall:
    return LeaseCall(Act.RELEASE, holder, places or (place(),))


def held(states: list[LeaseState]) -> list[bool]:
    return [state.held for state in states]


some_places = st.lists(st.sampled_from([("a", 1), ("b", 2), ("c", 3)]), min_size=0, max_size=3, unique=True)
some_calls = st.lists(st.tuples(st.sampled_from(Act), st.sampled_from("uvwxyz"), some_places), max_size=25)


@settings(max_examples=100, deadline=None)
@given(st.lists(some_calls, max_size=3))
def test_the_script_decides_as_the_arithmetic_does(servers: Servers, batches: list[Any]) -> None:
    async def compare() -> None:
        async with kit_redis.connect(servers.service_redis_url("ratelimit")) as client:
            real, model, example = RedisLeaseStore(client), dict[str, dict[str, int]](), uuid4()
            for batch in batches:
                calls = [
                    LeaseCall(act, holder, tuple(place(f"{example}:{name}", most) for name, most in places))
                    for act, holder, places in batch
                ]
                expected = apply_in_order(calls, model, at=0)
                said = await real.apply(calls)
                # Waits depend on the clocks, so what is compared is whether there is one and for which place.
                assert [(s.held, s.wait > 0) for s in said] == [(s.held, s.wait > 0) for s in expected]
                assert all(s.wait == 0 or s.wait <= HOUR for s in said)

    asyncio.run(compare())


async def test_only_so_many_hold_a_place_and_the_next_one_is_told_when_the_first_ends(store: LeaseStore) -> None:
    states = await store.apply([acquire("u"), acquire("v"), acquire("w")])
    assert held(states) == [True, True, False]
    assert HOUR - 60 * MICROSECONDS < states[2].wait <= HOUR


async def test_a_lease_acquired_again_takes_no_second_place(store: LeaseStore) -> None:
    assert held(await store.apply([acquire("u"), acquire("u"), acquire("v"), acquire("u")])) == [True] * 4


async def test_a_lease_takes_all_of_its_places_or_none(store: LeaseStore) -> None:
    narrow, wide = place("narrow", 1), place("wide", 2)
    states = await store.apply(
        [acquire("u", narrow, wide), acquire("v", wide, narrow), acquire("w", wide), acquire("x", wide)]
    )
    assert held(states) == [True, False, True, False]
    assert states[1].refusing == 1


async def test_a_released_place_is_free_for_the_next_and_releasing_twice_is_harmless(store: LeaseStore) -> None:
    calls = [acquire("u"), acquire("v"), release("u"), release("u"), acquire("w"), acquire("u")]
    assert held(await store.apply(calls)) == [True, True, False, False, True, False]


async def test_a_lease_that_is_not_renewed_ends_and_cannot_be_renewed_late(store: LeaseStore) -> None:
    brief = place(most=1, ttl=200_000)
    await store.apply([acquire("dies", brief)])

    async def place_is_free() -> bool:
        return held(await store.apply([acquire("next", brief)])) == [True]

    await until(place_is_free)
    assert held(await store.apply([renew("dies", brief)])) == [False]


async def test_a_renewed_lease_lasts_anew(store: LeaseStore) -> None:
    await store.apply([acquire("u", place(most=1, ttl=HOUR))])
    assert held(await store.apply([renew("u", place(most=1, ttl=2 * HOUR))])) == [True]
    (refused,) = await store.apply([acquire("v", place(most=1, ttl=2 * HOUR))])
    assert refused.wait > HOUR


async def test_who_has_one_place_of_two_has_lost_the_lease(store: LeaseStore) -> None:
    await store.apply([acquire("u", place("a"))])
    assert held(await store.apply([renew("u", place("a"), place("b"))])) == [False]


async def test_a_bound_that_is_lowered_keeps_those_who_are_in_and_lets_nobody_else(store: LeaseStore) -> None:
    await store.apply([acquire(holder, place(most=3)) for holder in "uvw"])
    narrow = place(most=1)
    calls = [renew("u", narrow), acquire("v", narrow), acquire("x", narrow), release("u", narrow), acquire("x", narrow)]
    assert held(await store.apply(calls)) == [True, True, False, False, False]


async def test_an_end_beyond_a_whole_time_to_live_is_brought_back(store: LeaseStore) -> None:
    """As after the clock was set back, or the time to live was lowered: a holder that died must not stay for longer."""
    await store.apply([acquire("died", place(most=1, ttl=24 * HOUR))])
    (refused,) = await store.apply([acquire("u", place(most=1, ttl=HOUR))])
    assert not refused.held
    assert 0 < refused.wait <= HOUR


async def test_64_clients_over_two_replicas_never_hold_more_than_the_bound(limiter_redis: Redis) -> None:
    replicas = [RedisLeaseStore(limiter_redis), RedisLeaseStore(limiter_redis)]
    inside = most_inside = 0

    async def client(number: int) -> None:
        nonlocal inside, most_inside
        for turn in range(10):
            holder, mine = f"{number}-{turn}", replicas[(number + turn) % 2]
            (state,) = await mine.apply([acquire(holder, place(most=5))])
            if state.held:
                inside += 1
                most_inside = max(most_inside, inside)
                await asyncio.sleep(0)
                inside -= 1
                await replicas[number % 2].apply([release(holder, place(most=5))])

    await asyncio.gather(*map(client, range(64)))
    assert 1 <= most_inside <= 5
    assert await limiter_redis.zcard(place().key) == 0


async def test_more_leases_than_one_script_takes_and_of_several_domains_are_decided_in_order(store: LeaseStore) -> None:
    calls = [acquire(str(n), place(most=MOST_CALLS, domain=f"d{n % 2}")) for n in range(3 * MOST_CALLS)]
    assert held(await store.apply(calls)) == [True] * (2 * MOST_CALLS) + [False] * MOST_CALLS


async def test_nothing_is_kept_of_leases_that_have_ended(limiter_redis: Redis) -> None:
    store = RedisLeaseStore(limiter_redis)
    await store.apply([acquire("u", place(ttl=100_000))])

    async def gone() -> bool:
        return not await limiter_redis.exists(place().key)

    await until(gone)
