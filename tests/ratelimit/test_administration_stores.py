"""What every store promises for administrators' work, held against both kinds: in memory and in Redis."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from typing import Any
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis

from kit.data.blocking_redis import BlockingRedis
from kit.runtime.clock import unix_milliseconds
from services.ratelimit.model import MICROSECONDS, Charge, Limit, Window
from services.ratelimit.model.administration import Act, Change, Offender, Recording
from services.ratelimit.model.matching import DescriptorEntry
from services.ratelimit.model.overrides import Override, OverrideKind
from services.ratelimit.store import ResettableStore
from services.ratelimit.store.admin_entries import KEEP_CHANGES, MOST_CHANGES, MOST_OFFENDERS, MOST_OVERRIDES, WINDOW
from services.ratelimit.store.administration import AdminStore, RedisAdminStore
from services.ratelimit.store.buckets import RedisBucketStore
from services.ratelimit.store.memory import MemoryBucketStore
from services.ratelimit.store.memory_administration import MemoryAdminStore

ACTOR = UUID(int=7)


class Now:
    """A clock that a test moves. It begins at the present, because Redis numbers changes by its own."""

    def __init__(self) -> None:
        self.at = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.at


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest, now: Now) -> AdminStore:
    if request.param == "memory":
        return MemoryAdminStore(now)
    return RedisAdminStore(request.getfixturevalue("limiter_redis"), now)


def change(subject: str) -> Change:
    return Change(Act.RESET, ACTOR, "a reason", subject)


async def subjects(store: AdminStore, size: int = 2 * MOST_CHANGES, before: str = "") -> list[str]:
    return [each.change.subject for each in await store.changes(size, before)]


async def test_changes_are_told_newest_first_and_go_on_where_a_page_ended(store: AdminStore) -> None:
    for number in range(5):
        await store.record(change(str(number)))
    first = await store.changes(2, "")
    assert [each.change for each in first] == [change("4"), change("3")]
    assert await subjects(store, 2, first[-1].id) == ["2", "1"]
    assert await subjects(store, 9, first[-1].id) == ["2", "1", "0"]


async def test_the_oldest_changes_are_dropped_beyond_a_number(store: AdminStore) -> None:
    for number in range(MOST_CHANGES + 2):
        await store.record(change(str(number)))
    kept = await subjects(store)
    assert (len(kept), kept[0], kept[-1]) == (MOST_CHANGES, str(MOST_CHANGES + 1), "2")


async def test_changes_are_forgotten_after_their_time(store: AdminStore, now: Now) -> None:
    await store.record(change("old"))
    now.at += KEEP_CHANGES + timedelta(minutes=1)
    assert await subjects(store) == []


def override(now: Now, wait: timedelta, **more: Any) -> Override:
    at = unix_milliseconds(now()) * 1000
    network = DescriptorEntry("client_ip", network=ip_network("203.0.113.0/24"))
    made = Override(
        uuid4(),
        OverrideKind.GRANT,
        "storymesh",
        (DescriptorEntry("class"), network, DescriptorEntry("user", "a=b")),
        Limit(5, 60, burst=7),
        made_at=at,
        ends_at=at + wait // timedelta(microseconds=1),
        actor_id=ACTOR,
        reason="a reason",
    )
    return replace(made, **more)


async def test_an_override_is_told_as_it_was_put_until_it_ends_or_is_lifted(store: AdminStore, now: Now) -> None:
    short, long = (override(now, timedelta(minutes=minutes)) for minutes in (5, 10))
    ban = override(now, timedelta(minutes=10), kind=OverrideKind.BAN, limit=None)
    for each in (short, long, ban):
        assert await store.put(each, change(f"{each.id}"))
    assert {each.id: each for each in await store.overrides()} == {each.id: each for each in (short, long, ban)}
    assert await store.lift(ban.id, change("lifted")) == ban
    assert await store.lift(ban.id, change("lifted again")) is None
    now.at += timedelta(minutes=6)
    assert list(await store.overrides()) == [long]
    assert await subjects(store) == ["lifted", str(ban.id), str(long.id), str(short.id)]


async def test_the_version_changes_with_every_change_of_overrides_alone(store: AdminStore, now: Now) -> None:
    versions = [await store.version()]
    one = override(now, timedelta(minutes=5))
    for step in (
        store.put(one, change("put")),
        store.put(replace(one, limit=None), change("put again")),
        store.lift(one.id, change("lifted")),
    ):
        await step
        versions.append(await store.version())
    assert len(set(versions)) == 4
    assert await store.lift(one.id, change("again")) is None
    await store.record(change("another"))
    assert await store.version() == versions[-1]


async def test_there_is_a_most_of_overrides_and_those_that_ended_do_not_count(store: AdminStore, now: Now) -> None:
    kept = override(now, timedelta(minutes=10))
    assert await store.put(kept, change("kept"))
    for _ in range(MOST_OVERRIDES - 1):
        assert await store.put(override(now, timedelta(minutes=5)), change("short"))
    assert not await store.put(override(now, timedelta(minutes=5)), change("too many"))
    assert "too many" not in await subjects(store, 1)
    assert await store.put(replace(kept, reason="another"), change("in place of itself"))
    now.at += timedelta(minutes=6)
    assert await store.put(override(now, timedelta(minutes=5)), change("again"))
    assert len(await store.overrides()) == 2


def offender(name: str) -> Offender:
    return Offender("storymesh", "a-rule", (("class", "default"), ("user", name)))


async def test_refusals_add_up_over_windows_until_their_time_is_over(store: AdminStore, now: Now) -> None:
    await store.add_refusals({offender("a"): 3, offender("b"): 4})
    assert list(await store.refusals(10)) == [(offender("b"), 4), (offender("a"), 3)]
    now.at += WINDOW
    await store.add_refusals({offender("a"): 2})
    assert list(await store.refusals(10)) == [(offender("a"), 5), (offender("b"), 4)]
    now.at += 2 * WINDOW
    assert list(await store.refusals(10)) == []
    assert list(await store.refusals(30)) == [(offender("a"), 5), (offender("b"), 4)]


async def test_the_most_refused_of_a_window_are_kept(store: AdminStore) -> None:
    await store.add_refusals({offender(str(number)): number + 1 for number in range(MOST_OFFENDERS + 5)})
    kept = await store.refusals(0)
    assert (len(kept), kept[-1]) == (MOST_OFFENDERS, (offender("5"), 6))


async def test_a_recording_is_bounded_stopped_replaced_and_forgotten(store: AdminStore, now: Now) -> None:
    assert await store.recording() is None
    assert await store.stop_recording(change("none")) is None
    ends_at = now.at.replace(microsecond=0) + timedelta(minutes=10)
    await store.record_calls(Recording(3, ends_at), change("started"))
    await store.add_calls(["a", "b"])
    await store.add_calls(["c", "d"])
    assert await store.recording() == Recording(3, ends_at, 3)
    now.at = ends_at - timedelta(minutes=5)
    assert await store.stop_recording(change("stopped")) == Recording(3, now.at, 3)
    assert list(await store.calls()) == ["a", "b", "c"]
    await store.record_calls(Recording(2, ends_at), change("again"))
    assert (list(await store.calls()), await store.recording()) == ([], Recording(2, ends_at, 0))
    assert await subjects(store) == ["again", "stopped", "started"]


async def test_what_is_kept_of_callers_ends_by_itself(limiter_redis: Redis, now: Now) -> None:
    store = RedisAdminStore(limiter_redis, now)
    await store.add_refusals({offender("a"): 3})
    await store.put(override(now, timedelta(minutes=5)), change("put"))
    await store.record_calls(Recording(3, now.at + timedelta(minutes=1)), change("started"))
    await store.add_calls(["a"])
    keys = [key async for key in limiter_redis.scan_iter("ratelimit:*")]
    assert len(keys) == 7
    assert [key for key in keys if await limiter_redis.pttl(key) < 0] == []


@pytest.fixture(params=["memory", "redis"])
def buckets(request: pytest.FixtureRequest) -> ResettableStore:
    if request.param == "memory":
        return MemoryBucketStore(lambda: time.time_ns() // 1000)
    store: RedisBucketStore = request.getfixturevalue("store_in_redis")
    return store


@pytest.fixture
def store_in_redis(limiter_redis: Redis) -> Iterator[RedisBucketStore]:
    with closing(BlockingRedis(limiter_redis)) as connection:
        yield RedisBucketStore(connection)


def test_buckets_and_quotas_that_are_forgotten_are_full_and_counted_if_they_were_not(buckets: ResettableStore) -> None:
    now = time.time_ns() // 1000
    hour = 3600 * MICROSECONDS
    limits: dict[str, Limit | Window] = {
        "bucket": Limit(1, 3600, burst=30),
        "quota": Window(30, now - hour, now + hour, now + 2 * hour),
    }
    keys = {name: f"ratelimit:{{{name}}}:{name}" for name in limits}

    def remaining(hits: int) -> set[int]:
        calls = [(Charge(keys[name], limit, hits),) for name, limit in limits.items()]
        return {each.verdicts[0].remaining for each in buckets.take(calls, seconds=10)}

    assert remaining(7) == {23}
    assert buckets.forget([*keys.values(), "ratelimit:{other}:full"], seconds=10) == 2
    assert remaining(0) == {30}
    assert buckets.forget(list(keys.values()), seconds=10) == 0
