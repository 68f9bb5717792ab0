"""Two relays and three workers, two of which take batches, processes all of them, are killed again and again while events come."""

from __future__ import annotations

import asyncio
import random
import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
from redis.asyncio import Redis
from sqlalchemy import select
from storymesh.events.v1.story_events_pb2 import StoryRequested

from kit.data.database import Database
from kit.events import outbox
from kit.events.dead_letter_store import dead_letters
from kit.events.envelope import from_bytes
from kit.events.inbox_stream import delayed_of, stream_of
from local.harness import Servers
from tests.kit.conftest import effects
from tests.kit.events.pipeline_process import WITNESS, WORKED_ON
from tests.waiting import until

pytestmark = pytest.mark.slow

ROLES = ("relay", "relay", "worker", "batches", "batches")
KEYS = "abcdefgh"
EVENTS_OF_A_KEY = 40
KILLS = 14


class Crew:
    """Whoever is killed is replaced, as by a supervisor."""

    def __init__(self, database_url: str, redis_url: str) -> None:
        self._where = (database_url, redis_url)
        self._members: list[tuple[str, asyncio.subprocess.Process]] = []

    async def add(self, role: str) -> None:
        member = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.kit.events.pipeline_process", role, *self._where),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        self._members.append((role, member))
        assert member.stdout
        assert await member.stdout.readline() == b"begun\n"

    async def kill(self, index: int) -> str:
        role, member = self._members.pop(index)
        member.kill()
        await member.communicate()
        return role

    async def disband(self) -> None:
        while self._members:
            await self.kill(0)


@asynccontextmanager
async def crew(database_url: str, redis_url: str) -> AsyncIterator[Crew]:
    members = Crew(database_url, redis_url)
    try:
        await asyncio.gather(*map(members.add, ROLES))
        yield members
    finally:
        await members.disband()


async def test_nothing_is_lost_doubled_or_overtaken_whoever_is_killed(
    db: Database, redis: Redis, database_url: str, servers: Servers
) -> None:
    chance = random.Random(20)

    async def write(key: str) -> None:
        for number in range(EVENTS_OF_A_KEY):
            async with db.transaction() as tx:
                await outbox.add(tx, StoryRequested(story_id=f"{number}"), key=key)
            await asyncio.sleep(chance.uniform(0, 0.2))

    async with crew(database_url, servers.redis_url) as members, asyncio.timeout(120):
        writing = asyncio.gather(*map(write, KEYS))
        for number in range(KILLS):
            await asyncio.sleep(chance.uniform(0.05, 0.4))
            role = await members.kill(chance.randrange(len(ROLES)))
            if number == KILLS // 2:
                await redis.delete(stream_of(WORKED_ON), "memory:outbox:kit", "memory:inbox:pipeline")
            await members.add(role)
        await writing
        await until(lambda: everything_has_its_effect(db), 60)
        await until(lambda: nothing_is_left(redis), 30)
    await everything_has_its_effect(db)
    async with db.transaction() as tx:
        assert (await tx.execute(select(dead_letters))).all() == []
    assert await first_copies(redis) == {key: list(range(EVENTS_OF_A_KEY)) for key in KEYS}


async def everything_has_its_effect(db: Database) -> bool:
    async with db.transaction() as tx:
        happened = list((await tx.execute(select(effects.c.event_id))).scalars())
        written = set((await tx.execute(select(outbox.table.c.id))).scalars())
    assert len(happened) == len(set(happened))
    return len(written) == len(KEYS) * EVENTS_OF_A_KEY and set(happened) == written


async def nothing_is_left(redis: Redis) -> bool:
    async with redis.pipeline(transaction=True) as pipeline:
        pipeline.xlen(stream_of(WORKED_ON))
        pipeline.zcard(delayed_of(WORKED_ON))
        return await pipeline.execute() == [0, 0]


async def first_copies(redis: Redis) -> dict[str, list[int]]:
    """In which order the events of each key were published; repeats by their id left out."""
    entries: Any = await redis.xrange(stream_of(WITNESS))
    order: dict[str, list[int]] = defaultdict(list)
    seen: set[UUID] = set()
    for _, fields in entries:
        event = from_bytes(fields[b"event"])
        if event.id not in seen:
            seen.add(event.id)
            order[event.key].append(int(event.decode(StoryRequested).story_id))
    return order
