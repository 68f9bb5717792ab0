"""The contender that is kit's inbox without Postgres: the job queues' work with the same guarantees."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from uuid import uuid4

from redis.asyncio import Redis

from kit.data import redis as kit_redis
from kit.data.database import Database
from kit.events.envelope import Event
from kit.events.inbox import Inbox
from kit.events.inbox_stream import stream_of

from .process import feed, run

_SERVICE = "bench-inbox"
_TYPE = "noop"


async def noop(_event: Event) -> None:
    """The job."""


async def drained(redis: Redis) -> bool:
    return not await redis.xlen(stream_of(_SERVICE))


async def _work(url: str, slots: int, database_url: str) -> None:
    db = Database(database_url, pool=1)  # a database for dead letters, of which there are none
    async with kit_redis.connect(url) as redis:
        inbox = Inbox(db, redis, _SERVICE, {_TYPE: noop}, lease_seconds=15, concurrency=slots, max_failures=8)
        await inbox.run(asyncio.Event())


async def _feed(url: str, _: str) -> None:
    async with kit_redis.connect(url) as redis:

        async def enqueue() -> None:
            event = Event(uuid4(), _TYPE, "", datetime.now(UTC), "", b"")
            await redis.xadd(stream_of(_SERVICE), {"event": event.to_bytes()})

        await feed(enqueue)


if __name__ == "__main__":
    run(_work, _feed)
