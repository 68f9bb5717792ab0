"""Redis loses what it was told, or a part of it: everything that may be lost is told again, and nothing is done twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import insert, select, text
from storymesh.events.v1 import story_events_pb2

from kit.data import redis as kit_redis
from kit.data.database import Database
from kit.events.envelope import Event
from kit.events.inbox import Inbox
from kit.events.inbox_store import mark_processed
from kit.events.inbox_stream import stream_of
from kit.events.redis_memory import redis_memories
from kit.events.relay import Relay
from local.harness import Servers
from tests.kit.conftest import QUICK, effects
from tests.kit.events.test_relay import request, running, stories
from tests.waiting import until

pytestmark = pytest.mark.slow

ROUTES = {story_events_pb2.StoryRequested.DESCRIPTOR.full_name: ("story",)}

RelayFor = Callable[..., Relay]


@pytest.fixture
def relay_for(db: Database, redis: Redis, database_url: str) -> RelayFor:
    """Each call is another process's relay: it knows nothing yet."""

    def build(to: Redis = redis, **options: int) -> Relay:
        return Relay(db, to, ROUTES, service="kit", database_url=database_url, **options)

    return build


@pytest.fixture
async def durable(mortal: Servers) -> AsyncIterator[Redis]:
    """A Redis that may be restarted. Empty."""
    async with kit_redis.connect(mortal.redis_url) as client:
        await client.flushall()
        yield client


async def published(relay: Relay) -> None:
    while await relay.publish() or await relay.repeat():
        pass


async def aged(db: Database, interval: str, *stories: str) -> None:
    async with db.transaction() as tx:
        for story in stories:
            await tx.execute(
                text(f"UPDATE outbox SET published_at = now() - interval '{interval}' WHERE key = :key"), {"key": story}
            )


async def repeated_long_ago(db: Database) -> None:
    """The very first relay of all repeats what there is, as after any loss."""
    async with db.transaction() as tx:
        await tx.execute(text("UPDATE redis_memories SET repeated_at = now() - interval '1 day'"))


async def marked_as_repeats(client: Redis) -> list[bool]:
    entries: Any = await client.xrange(stream_of("story"))
    return [b"again" in fields for _, fields in entries]


async def test_an_emptied_redis_gets_everything_again_in_order_and_marked_as_a_repeat(
    db: Database, redis: Redis, relay_for: RelayFor
) -> None:
    relay = relay_for()
    await request(db, "a", "b", "c")
    await published(relay)
    await redis.flushall()
    await published(relay)
    assert await stories(redis) == ["a", "b", "c"]
    assert await marked_as_repeats(redis) == [True] * 3
    await published(relay)
    assert await redis.xlen(stream_of("story")) == 3


async def test_a_relay_that_is_started_after_the_loss_knows_of_it_too(
    db: Database, redis: Redis, relay_for: RelayFor
) -> None:
    await request(db, "a")
    await published(relay_for())
    await redis.flushall()
    await published(relay_for())
    assert await stories(redis) == ["a"]


async def test_a_redis_that_lost_nothing_is_told_nothing_twice(db: Database, redis: Redis, relay_for: RelayFor) -> None:
    await request(db, "a")
    await published(relay_for())
    await published(relay_for())
    assert await stories(redis) == ["a"]


async def test_another_redis_with_notes_of_its_own_gets_everything(
    db: Database, redis: Redis, relay_for: RelayFor
) -> None:
    await request(db, "a")
    await published(relay_for())
    await redis.flushall()
    await redis.hset("memory:outbox:kit", mapping={"epoch": "another", "told_at": "2100-01-01T00:00:00+00:00"})
    await published(relay_for())
    assert await stories(redis) == ["a"]


async def test_what_was_published_before_the_time_of_retention_stays_where_it_is(
    db: Database, redis: Redis, relay_for: RelayFor
) -> None:
    await request(db, "old", "kept")
    await published(relay_for())
    await aged(db, "8 days", "old")
    await aged(db, "6 days", "kept")
    await redis.flushall()
    await published(relay_for())
    assert await stories(redis) == ["kept"]


async def test_new_events_of_a_key_wait_for_those_before_them_and_no_others_do(
    db: Database, redis: Redis, relay_for: RelayFor
) -> None:
    await request(db, "first", "second", key="same")
    await published(relay_for())
    await redis.flushall()
    await request(db, "third", key="same")
    await request(db, "unrelated")
    relay = relay_for(repeated_at_a_time=1)
    assert await relay.publish() == 1
    assert await relay.publish() == 0
    assert await stories(redis) == ["unrelated"]
    await published(relay)
    assert await stories(redis) == ["unrelated", "first", "second", "third"]


async def test_another_relay_goes_on_where_one_that_died_in_a_repeat_had_come_to(
    db: Database, redis: Redis, relay_for: RelayFor
) -> None:
    await request(db, *"abcde")
    await published(relay_for())
    await redis.flushall()
    dying = relay_for(repeated_at_a_time=2)
    await dying.publish()
    assert await dying.repeat() == 2
    await published(relay_for())
    assert await stories(redis) == list("abcde")


async def test_many_relays_repeat_everything_once_and_in_order(db: Database, redis: Redis, relay_for: RelayFor) -> None:
    names = [f"{number:03}" for number in range(100)]
    await request(db, *names)
    await published(relay_for())
    async with running(*(relay_for(repeated_at_a_time=7) for _ in range(3))):
        await redis.flushall()

        async def all_there() -> bool:
            return await redis.xlen(stream_of("story")) >= len(names)

        await until(all_there)
        await until(lambda: nothing_to_repeat(db))
    assert await stories(redis) == names


async def nothing_to_repeat(db: Database) -> bool:
    async with db.transaction() as tx:
        query = select(redis_memories.c.repeat_before).where(redis_memories.c.name == "outbox:kit")
        return (await tx.execute(query)).scalar_one() is None


async def test_a_full_inbox_is_not_filled_further_by_repeats(db: Database, redis: Redis, relay_for: RelayFor) -> None:
    await request(db, *"abcdefgh")
    await published(relay_for())
    await redis.flushall()
    relay = relay_for(repeated_at_a_time=2, longest_backlog=3)
    await published(relay)
    assert await stories(redis) == list("abcd")
    await request(db, "new")
    await relay.publish()
    assert await stories(redis) == [*"abcd", "new"]
    await redis.xtrim(stream_of("story"), maxlen=0)
    await published(relay)
    assert await stories(redis) == list("efgh")


async def test_a_loss_that_cannot_be_recorded_is_found_again(db: Database, redis: Redis, relay_for: RelayFor) -> None:
    await request(db, "a")
    relay = relay_for()
    await published(relay)
    await redis.flushall()
    async with db.transaction() as tx:
        await tx.execute(text("ALTER TABLE redis_memories ADD CONSTRAINT crash CHECK (repeat_since IS NULL) NOT VALID"))
    try:
        for _ in range(2):
            with pytest.raises(Exception, match="crash"):
                await relay.publish()
    finally:
        async with db.transaction() as tx:
            await tx.execute(text("ALTER TABLE redis_memories DROP CONSTRAINT crash"))
    await published(relay)
    assert await stories(redis) == ["a"]


async def test_after_a_restart_with_its_data_only_the_last_minute_is_told_again(
    db: Database, durable: Redis, mortal: Servers, relay_for: RelayFor
) -> None:
    relay = relay_for(durable)
    await request(db, "long ago", "just now")
    await published(relay)
    await aged(db, "5 minutes", "long ago")
    await repeated_long_ago(db)
    await mortal.restart("redis")
    await published(relay)
    assert await stories(durable) == ["long ago", "just now", "just now"]
    assert await marked_as_repeats(durable) == [False, False, True]


async def test_a_redis_that_comes_back_from_an_old_snapshot_gets_what_came_since(
    db: Database, durable: Redis, mortal: Servers, relay_for: RelayFor
) -> None:
    """Its own note says until when it remembers, however long ago that was."""
    relay = relay_for(durable)
    await request(db, "known", "forgotten", "latest")
    await published(relay)
    await aged(db, "3 hours", "known")
    await aged(db, "1 hour", "forgotten")
    await repeated_long_ago(db)
    async with db.transaction() as tx:
        snapshot_at = (await tx.execute(text("SELECT now() - interval '2 hours'"))).scalar_one()
    await durable.hset("memory:outbox:kit", "told_at", snapshot_at.isoformat())
    await durable.xtrim(stream_of("story"), maxlen=0)
    await mortal.restart("redis")
    await published(relay)
    assert await stories(durable) == ["forgotten", "latest"]


async def test_a_restart_soon_after_a_repeat_begins_the_repeat_anew(
    db: Database, durable: Redis, mortal: Servers, relay_for: RelayFor
) -> None:
    """The last that the repeat told it may be what it lost now."""
    relay = relay_for(durable)
    await request(db, "long ago")
    await published(relay)
    await aged(db, "3 days", "long ago")
    await durable.flushall()
    await published(relay)
    await durable.xtrim(stream_of("story"), maxlen=0)
    await mortal.restart("redis")
    await published(relay)
    assert await stories(durable) == ["long ago"]


async def test_a_running_mesh_of_relay_and_workers_outlives_the_loss_of_everything(
    db: Database, redis: Redis, relay_for: RelayFor
) -> None:
    """Some events were handled, some published and not handled, some not published: each has its effect once."""
    open_ = asyncio.Event()

    async def handle(taken: Event) -> None:
        if not open_.is_set() and taken.key >= "m":
            await open_.wait()
        async with db.transaction() as tx:
            if await mark_processed(tx, taken):
                await tx.execute(insert(effects).values(event_id=taken.id, worker="w"))

    inbox = Inbox(
        db,
        redis,
        "story",
        {story_events_pb2.StoryRequested.DESCRIPTOR.full_name: handle},
        lease_seconds=60,
        concurrency=4,
        max_failures=3,
        records_events=True,
        tuning=QUICK,
    )
    async with running(relay_for(), inbox):  # type: ignore[arg-type]  # run and stop alike
        await request(db, *"abcdefghijkl")
        await until(lambda: done(db, 12))
        await request(db, *"mnopqrstuv")
        await until(lambda: _pending(redis, 4))
        await redis.flushall()
        open_.set()
        await request(db, *"wxyz")
        await until(lambda: done(db, 26))
        await until(lambda: nothing_to_repeat(db))

        async def drained() -> bool:
            return await redis.xlen(stream_of("story")) == 0

        await until(drained)
    assert await done(db, 26)


async def done(db: Database, number: int) -> bool:
    async with db.transaction() as tx:
        found = list((await tx.execute(select(effects.c.event_id))).scalars())
    assert len(found) == len(set(found))
    return len(found) == number


async def _pending(client: Redis, number: int) -> bool:
    return bool((await client.xpending(stream_of("story"), "workers"))["pending"] == number)
