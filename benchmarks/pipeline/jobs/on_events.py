"""The contender that is the mesh's event path: outbox, relay and inbox.

The handler is idempotent, as story's handlers are, so no event is recorded as processed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from uuid import uuid4

import psycopg
from psycopg import sql
from redis.asyncio import Redis
from sqlalchemy import create_engine, exists, select
from sqlalchemy.engine import make_url
from storymesh.events.v1 import story_events_pb2 as events

from kit.data import redis as kit_redis
from kit.data.database import Database
from kit.events import outbox
from kit.events.envelope import Event
from kit.events.handlers import BatchHandler, Handler
from kit.events.inbox import Inbox
from kit.events.inbox_stream import stream_of
from kit.events.relay import Relay

from .process import feed, run

_SERVICE = "bench-events"
_TYPE = events.StoryRequested.DESCRIPTOR.full_name
_DATABASE = "bench"
_POOL = 10


def create_database(admin_url: str) -> str:
    """Creates a database with kit's tables and returns its SQLAlchemy URL."""
    with psycopg.connect(admin_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(_DATABASE)))
    url = make_url(admin_url).set(drivername="postgresql+psycopg", database=_DATABASE)
    engine = create_engine(url)
    outbox.metadata.create_all(engine)
    engine.dispose()
    return url.render_as_string(hide_password=False)


async def drained(redis: Redis, db: Database) -> bool:
    """Whether no event is left. The outbox is checked first, because the relay marks it after adding to the stream."""
    async with db.single() as tx:
        unpublished = await tx.scalar(select(exists().where(outbox.table.c.published_at.is_(None))))
    return not unpublished and not await redis.xlen(stream_of(_SERVICE))


async def noop(_events: Sequence[Event]) -> None:
    """The job, as a handler of batches."""


async def work(url: str, slots: int, database_url: str, handler_on: Callable[[Database], Handler]) -> None:
    """Runs a worker with a relay."""
    db = Database(database_url, pool=_POOL)
    async with kit_redis.connect(url) as redis, asyncio.TaskGroup() as group:
        inbox = Inbox(db, redis, _SERVICE, {_TYPE: handler_on(db)}, lease_seconds=15, concurrency=slots, max_failures=8)
        relay = Relay(db, redis, {_TYPE: (_SERVICE,)}, service="bench", database_url=database_url)
        never = asyncio.Event()
        group.create_task(inbox.run(never))
        group.create_task(relay.run(never))


async def feed_events(_: str, database_url: str) -> None:
    db = Database(database_url, pool=_POOL)

    async def enqueue() -> None:
        story_id = uuid4()
        async with db.single() as tx:
            await outbox.add(tx, events.StoryRequested(story_id=str(story_id)), key=story_id)

    await feed(enqueue)


if __name__ == "__main__":
    run(partial(work, handler_on=lambda _: BatchHandler(noop)), feed_events)
