"""From a committed row to the inboxes of everyone who is to hear of it."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from time import monotonic
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import redis.exceptions
from redis.asyncio import Redis
from sqlalchemy import func, select, text, update
from sqlalchemy.engine import make_url
from storymesh.events.v1 import auth_events_pb2, story_events_pb2

from kit.data import redis as kit_redis
from kit.data.database import Database, Transaction
from kit.events import outbox
from kit.events.envelope import Event, from_bytes
from kit.events.inbox_stream import stream_of
from kit.events.relay import Relay
from kit.events.relay_sleep import RelaySleep
from kit.runtime import tracing
from local.harness import Servers
from tests.kit.conftest import crash
from tests.waiting import until

ROUTES = {
    story_events_pb2.StoryRequested.DESCRIPTOR.full_name: ("story",),
    story_events_pb2.StoryCompleted.DESCRIPTOR.full_name: ("notification", "story"),
}
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

RelayFor = Callable[..., Relay]


@pytest.fixture
def relay_for(db: Database, redis: Redis, database_url: str) -> RelayFor:
    def build(to: Redis = redis, routes: Mapping[str, Sequence[str]] = ROUTES, **options: Any) -> Relay:
        return Relay(db, to, routes, service="kit", database_url=database_url, **options)

    return build


@pytest.fixture
def relay(relay_for: RelayFor) -> Relay:
    return relay_for()


@asynccontextmanager
async def running(*relays: Relay) -> AsyncIterator[None]:
    stopping = asyncio.Event()
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for each in relays:
            group.create_task(each.run(stopping))
        try:
            yield
        finally:
            stopping.set()


async def request(db: Database, *stories: str, key: str = "") -> None:
    """Each in a transaction of its own."""
    for story in stories:
        async with db.transaction() as tx:
            await outbox.add(tx, story_events_pb2.StoryRequested(story_id=story), key=key or story)


async def received(client: Redis, service: str = "story") -> list[Event]:
    entries: Any = await client.xrange(stream_of(service))
    return [from_bytes(fields[b"event"]) for _, fields in entries]


async def stories(client: Redis, service: str = "story") -> list[str]:
    events = await received(client, service)
    return [event.decode(story_events_pb2.StoryRequested).story_id for event in events]


async def unpublished(db: Database) -> int:
    async with db.transaction() as tx:
        waiting = select(func.count()).where(outbox.table.c.published_at.is_(None))
        return int((await tx.execute(waiting)).scalar_one())


async def test_an_event_exists_exactly_if_its_transaction_committed(db: Database, redis: Redis, relay: Relay) -> None:
    await request(db, "kept")

    async def undo() -> None:
        async with db.transaction() as tx:
            await outbox.add(tx, story_events_pb2.StoryRequested(story_id="undone"), key="k")
            raise KeyError

    with pytest.raises(KeyError):
        await undo()
    async with db.transaction() as tx:
        await outbox.add(tx, story_events_pb2.StoryRequested(story_id="not yet"), key="k")
        assert await relay.publish() == 1
        assert await stories(redis) == ["kept"]
    assert await relay.publish() == 1
    assert await stories(redis) == ["kept", "not yet"]
    assert await relay.publish() == 0


async def test_a_worker_that_waits_gets_all_that_is_published_together(
    db: Database, redis: Redis, relay: Relay
) -> None:
    await redis.xgroup_create(stream_of("story"), "workers", id="0", mkstream=True)
    await request(db, "s1", "s2", "s3")

    async def is_waiting() -> bool:
        return bool((await redis.info("clients"))["blocked_clients"])

    read = redis.xreadgroup("workers", "w", {stream_of("story"): ">"}, count=10, block=30_000)
    reading = asyncio.ensure_future(read)
    await until(is_waiting)
    assert await relay.publish() == 3
    answer: Any = await reading
    ((_, entries),) = answer
    assert len(entries) == 3


async def test_an_event_arrives_as_it_was_written(db: Database, redis: Redis, relay: Relay) -> None:
    with tracing.continued(TRACEPARENT, "request"):
        await request(db, "s1", key="k1")
    await relay.publish()
    (event,) = await received(redis)
    async with db.transaction() as tx:
        row = (await tx.execute(select(outbox.table))).mappings().one()
    assert (event.id, event.occurred_at) == (row["id"], row["occurred_at"])
    assert (event.key, event.type) == ("k1", story_events_pb2.StoryRequested.DESCRIPTOR.full_name)
    assert event.traceparent.split("-")[1] == TRACEPARENT.split("-")[1]


async def test_every_inbox_of_a_route_gets_the_event(db: Database, redis: Redis, relay: Relay) -> None:
    async with db.transaction() as tx:
        await outbox.add(tx, story_events_pb2.StoryCompleted(story_id="s"), key="s")
    await relay.publish()
    assert [event.id for event in await received(redis)] == [
        event.id for event in await received(redis, "notification")
    ]


async def test_an_event_without_a_route_holds_nothing_up(
    db: Database, redis: Redis, relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    async with db.transaction() as tx:
        await outbox.add(tx, auth_events_pb2.UserRegistered(user_id="u"), key="k")
    await request(db, "after", key="k")
    await relay.publish()
    await relay.publish()
    assert await stories(redis) == ["after"]
    assert await unpublished(db) == 0
    (told,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert auth_events_pb2.UserRegistered.DESCRIPTOR.full_name in told.getMessage()


async def test_a_row_that_another_relay_holds_is_not_overtaken_by_its_key(
    db: Database, redis: Redis, relay: Relay
) -> None:
    await request(db, "first", "second", key="same")
    await request(db, "unrelated", key="other")
    first = select(outbox.table).order_by(outbox.table.c.position).limit(1).with_for_update()
    async with db.transaction() as tx:
        await tx.execute(first)
        assert await relay.publish() == 1
        assert await stories(redis) == ["unrelated"]
    assert await relay.publish() == 1
    assert await relay.publish() == 1
    assert await stories(redis) == ["unrelated", "first", "second"]


async def test_many_relays_at_once_keep_each_keys_order_and_publish_nothing_twice(
    db: Database, redis: Redis, relay_for: RelayFor
) -> None:
    async def write(key: str) -> None:
        await request(db, *(f"{key}:{number}" for number in range(25)), key=key)

    async with running(*(relay_for() for _ in range(3))):
        await asyncio.gather(*(write(key) for key in "abcdef"))
        await until(lambda: _none_left(db))
    by_key = defaultdict(list)
    for story in await stories(redis):
        key, _, number = story.partition(":")
        by_key[key].append(int(number))
    assert by_key == {key: list(range(25)) for key in "abcdef"}


async def _none_left(db: Database) -> bool:
    return await unpublished(db) == 0


async def test_a_commit_wakes_the_relay_long_before_it_would_look_again(
    db: Database, redis: Redis, relay_for: RelayFor
) -> None:
    async with running(relay_for(poll_seconds=60.0)):
        await request(db, "warm-up")
        await until(lambda: stories(redis))
        began = monotonic()
        await request(db, "woken")
        await until(lambda: _length_is(redis, 2))
    assert monotonic() - began < 5


async def _adds(db: Database) -> tuple[bool, bool]:
    """Adds a row. Returns whether the relay was taken for awake, and whether it was notified."""
    url = make_url(db._engine.url).set(drivername="postgresql").render_as_string(hide_password=False)
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as listener:
        await listener.execute(f"LISTEN {outbox.CHANNEL}")
        async with db.transaction() as tx:
            await outbox.add(tx, story_events_pb2.StoryRequested(story_id="one"), key=uuid4())
            shared = await _shares(tx)
            await tx.execute(text(f"NOTIFY {outbox.CHANNEL}, 'end'"))
            pid = tx.driver.info.backend_pid
        notified = False
        async with aclosing(listener.notifies(timeout=10)) as notifications:
            async for each in notifications:
                if each.pid == pid and each.payload:
                    return shared, notified
                notified |= each.pid == pid
    raise AssertionError("nothing was heard")


async def _shares(tx: Transaction) -> bool:
    """Whether the transaction has the lock that keeps a relay awake."""
    mine = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
    return bool((await tx.execute(text(mine))).scalar_one())


async def _many(db: Database) -> None:
    await asyncio.gather(*(request(db, str(number)) for number in range(20)))


async def test_a_relay_is_notified_while_it_sleeps_and_not_while_rows_come_fast(
    db: Database, relay_for: RelayFor
) -> None:
    seen: set[tuple[bool, bool]] = set()

    async def both_seen() -> bool:
        seen.add(await _adds(db))
        await _many(db)
        seen.add(await _adds(db))
        return len(seen) > 1

    async with running(relay_for(poll_seconds=60.0)):
        await until(both_seen)
        await until(lambda: _none_left(db))
    assert seen == {(True, False), (False, True)}


async def test_what_nobody_was_notified_of_is_published_before_the_relay_sleeps(
    db: Database, redis: Redis, relay_for: RelayFor
) -> None:
    """However late its transaction ends, and though the relay finds nothing more to do meanwhile."""
    relay = relay_for(poll_seconds=60.0)
    tried = 0

    async def added_late() -> bool:
        nonlocal tried
        tried += 1
        await _many(db)
        async with db.transaction() as tx:
            await outbox.add(tx, story_events_pb2.StoryRequested(story_id=f"late {tried}"), key=f"late {tried}")
            if shares := await _shares(tx):
                await until(relay._sleep._tired.is_set)
        return shares

    async def is_there() -> bool:
        return f"late {tried}" in await stories(redis)

    async with running(relay):
        await until(added_late)
        await until(is_there)


async def test_a_relay_that_falls_asleep_looks_once_more(db: Database, database_url: str) -> None:
    """For rows that were committed after its last look, and before it had the lock."""
    looks: list[bool] = []
    sleep = RelaySleep(database_url, lambda: looks.append(sleep.awake))
    running = asyncio.create_task(sleep.run())
    try:
        await until(lambda: looks == [True])
        for _ in range(10):
            sleep.looked(0)
        await until(lambda: looks == [True, False])
        assert await _adds(db) == (False, True)
    finally:
        running.cancel()


async def test_a_relay_that_lost_its_place_to_another_does_not_stay_awake(db: Database, database_url: str) -> None:
    first, second = (RelaySleep(database_url, lambda: None) for _ in range(2))
    running = [asyncio.create_task(first.run())]
    try:
        await until(lambda: first.awake)
        running.append(asyncio.create_task(second.run()))
        listener = "query = 'LISTEN outbox' AND datname = current_database()"
        async with db.single() as tx:
            await tx.execute(text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {listener}"))
        await until(lambda: second.awake)
        for _ in range(10):
            first.looked(0)
        await until(lambda: not first.awake)
    finally:
        for each in running:
            each.cancel()


async def test_many_events_of_one_key_do_not_wait_for_a_poll_each(
    db: Database, redis: Redis, relay_for: RelayFor
) -> None:
    await request(db, *map(str, range(20)), key="same")
    async with running(relay_for(poll_seconds=60.0)):
        await until(lambda: _length_is(redis, 20))
    assert await stories(redis) == list(map(str, range(20)))


async def _length_is(client: Redis, length: int) -> bool:
    return await client.xlen(stream_of("story")) == length


async def test_a_crash_between_copy_and_commit_repeats_the_event_under_its_id(
    db: Database, redis: Redis, relay: Relay
) -> None:
    """The database refuses the commit, when the copy has happened."""
    crash = """
    CREATE FUNCTION crash() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'crash'; END $$;
    CREATE CONSTRAINT TRIGGER crash AFTER UPDATE ON outbox DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION crash();
    """
    await request(db, "s")
    async with db.transaction() as tx:
        await tx.exec_driver_sql(crash)
    try:
        with pytest.raises(Exception, match="crash"):
            await relay.publish()
    finally:
        async with db.transaction() as tx:
            await tx.execute(text("DROP FUNCTION crash CASCADE"))
    assert await unpublished(db) == 1
    await relay.publish()
    first, second = await received(redis)
    assert first == second


async def test_without_redis_the_rows_stay_and_are_published_when_it_is_back(
    db: Database, mortal: Servers, relay_for: RelayFor
) -> None:
    async with kit_redis.connect(mortal.redis_url) as client:
        await client.flushall()
        await mortal.stop("redis")
        try:
            await request(db, "meanwhile")
            with pytest.raises(redis.exceptions.ConnectionError):
                await relay_for(to=client).publish()
            assert await unpublished(db) == 1
        finally:
            await mortal.start("redis")
        async with running(relay_for(to=client)):
            await until(lambda: _none_left(db))
        assert await stories(client) == ["meanwhile"]


async def test_a_running_relay_outlives_an_outage_of_redis(
    db: Database, mortal: Servers, relay_for: RelayFor, caplog: pytest.LogCaptureFixture
) -> None:
    async with kit_redis.connect(mortal.redis_url) as client:
        await client.flushall()
        async with running(relay_for(to=client)):
            await mortal.stop("redis")
            try:
                await request(db, "meanwhile")
                await until(lambda: "cannot be relayed" in caplog.text)
            finally:
                await mortal.start("redis")
            await until(lambda: _none_left(db))
        assert await stories(client) == ["meanwhile"]


async def test_a_killed_postgres_ends_neither_the_relay_nor_its_listening(
    db: Database, redis: Redis, relay: Relay, servers: Servers
) -> None:
    async with running(relay):
        await request(db, "before")
        await until(lambda: _length_is(redis, 1))
        await crash(servers)
        await request(db, "after")
        await until(lambda: _length_is(redis, 2))
    assert await stories(redis) == ["before", "after"]


async def test_a_relay_that_is_told_to_stop_ends_at_once(relay_for: RelayFor) -> None:
    async with asyncio.timeout(5), running(relay_for(poll_seconds=60.0)):
        await asyncio.sleep(0)


@pytest.mark.parametrize("at_a_time", [1, 2, 5000])
async def test_rows_published_long_ago_are_removed_and_no_others(
    db: Database, relay_for: RelayFor, at_a_time: int
) -> None:
    """In whatever parts: those of many would take longer than a statement may."""
    relay = relay_for(purged_at_a_time=at_a_time)
    await request(db, "old", "older", "oldest", "fresh", "waiting")
    await relay.publish()
    async with db.transaction() as tx:
        row = outbox.table
        long_ago = select(row.c.position).order_by(row.c.position).limit(3)
        newest = select(func.max(row.c.position)).scalar_subquery()
        ago = text("now() - interval '8 days'")
        await tx.execute(update(row).where(row.c.position.in_(long_ago)).values(published_at=ago))
        await tx.execute(update(row).where(row.c.position == newest).values(published_at=None, occurred_at=ago))

    async def left() -> bool:
        async with db.transaction() as tx:
            return (await tx.execute(select(func.count()).select_from(outbox.table))).scalar_one() == 2

    async with running(relay):
        await until(left)
