"""The Lua script on a real Redis, compared with the arithmetic in Python."""

from __future__ import annotations

import asyncio

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from services.ratelimit.model import MICROSECONDS, Charge, Limit, take
from services.ratelimit.store.buckets import BucketStore

limits = st.builds(
    Limit,
    # Intervals that do not divide evenly, so that rounding shows.
    requests=st.sampled_from([1, 3, 7, 11, 997, 9973]),
    period_seconds=st.sampled_from([1, 13, 3600, 86_400]),
    burst=st.integers(1, 1000),
)
hits = st.one_of(st.integers(0, 3), st.integers(0, 1100), st.just(2**64 - 1))
asked = st.tuples(limits, hits)
# The instant of being full, in intervals from now: long past, near, within the bucket, beyond it; or no state.
offsets = st.one_of(st.none(), st.floats(-10, 10), st.floats(0, 2000))


async def redis_time(redis: Redis) -> int:
    seconds, microseconds = await redis.time()
    return seconds * MICROSECONDS + microseconds


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(asked, offsets), min_size=1, max_size=4))
async def test_the_script_does_what_the_arithmetic_says_from_any_state(
    store: BucketStore, redis: Redis, buckets: list[tuple[tuple[Limit, int], float | None]]
) -> None:
    """Sets the buckets to any state around the present instead of moving the clock; the script returns the time that it read."""
    await redis.flushdb()
    begun = await redis_time(redis)
    charges = [Charge(f"ratelimit:{{t}}:{number}", limit, hits) for number, ((limit, hits), _) in enumerate(buckets)]
    states = [
        None if offset is None else begun + int(offset * charge.limit.interval)
        for charge, (_, offset) in zip(charges, buckets, strict=True)
    ]
    kept_before = {charge.key: state for charge, state in zip(charges, states, strict=True) if state is not None}
    if kept_before:
        await redis.mset(kept_before)

    taken = await store.take(charges)

    assert begun <= taken.at <= await redis_time(redis)
    assert taken == take(charges, states, at=taken.at)
    kept_after = await redis.mget([charge.key for charge in charges])
    for charge, state, verdict, kept in zip(charges, states, taken.verdicts, kept_after, strict=True):
        if taken.admitted and charge.debit:
            # A bucket that is full by now may have expired already.
            assert kept is None or int(kept) == taken.at + verdict.debt
        else:
            assert (kept and int(kept)) == state


async def test_many_callers_at_once_get_exactly_the_burst(store: BucketStore) -> None:
    limit = Limit(requests=1, period_seconds=3600, burst=100)
    taken = await asyncio.gather(*(store.take([Charge("ratelimit:{t}:shared", limit, 1)]) for _ in range(400)))
    assert sum(each.admitted for each in taken) == 100


async def test_many_callers_at_once_never_debit_one_bucket_without_the_other(store: BucketStore) -> None:
    narrow = Limit(requests=1, period_seconds=3600, burst=30)
    wide = Limit(requests=1, period_seconds=3600, burst=1000)
    both = [Charge("ratelimit:{t}:narrow", narrow, 1), Charge("ratelimit:{t}:wide", wide, 1)]
    taken = await asyncio.gather(*(store.take(both) for _ in range(200)))
    look = await store.take([Charge("ratelimit:{t}:wide", wide, 0)])
    assert sum(each.admitted for each in taken) == 30
    assert look.verdicts[0].remaining == 970


async def test_a_bucket_is_forgotten_when_it_is_full_and_not_before(store: BucketStore, redis: Redis) -> None:
    limit = Limit(requests=10, period_seconds=1, burst=50)
    taken = await store.take([Charge("ratelimit:{t}:a", limit, 3)])
    full_at = taken.at + taken.verdicts[0].debt
    expires_at = await redis.pexpiretime("ratelimit:{t}:a")
    assert taken.verdicts[0].debt == 300_000
    assert 0 <= expires_at * 1000 - full_at < 1000


async def test_a_look_or_a_refusal_leaves_nothing_behind(store: BucketStore, redis: Redis) -> None:
    limit = Limit(requests=1, period_seconds=60, burst=2)
    await store.take([Charge("ratelimit:{t}:looked-at", limit, 0)])
    await store.take([Charge("ratelimit:{t}:too-much", limit, 3)])
    assert await redis.keys() == []


async def test_the_script_is_loaded_again_after_redis_forgot_it(store: BucketStore, redis: Redis) -> None:
    charge = Charge("ratelimit:{t}:a", Limit(requests=1, period_seconds=60, burst=3), 1)
    remaining = []
    for _ in range(2):
        remaining.append((await store.take([charge])).verdicts[0].remaining)
        await redis.script_flush()
    assert remaining == [2, 1]


async def test_more_checks_than_connections_wait_for_their_turn(store: BucketStore, limiter_redis: Redis) -> None:
    limit = Limit(requests=1, period_seconds=60, burst=1)
    charges = [Charge(f"ratelimit:{{t}}:{number}", limit, 1) for number in range(500)]
    taken = await asyncio.gather(*(store.take([charge]) for charge in charges))
    assert all(each.admitted for each in taken)
