"""A worker that is only slow is not taken for one that died; one that died, or will never come back, is."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from redis.asyncio import Redis

from kit.data.database import Database
from kit.events import inbox_stream
from kit.events.inbox_stream import InboxStream
from local.harness import Servers
from tests.kit.conftest import QUICK
from tests.kit.events.slow_worker_process import FINISH
from tests.kit.events.test_inbox import SERVICE, STREAM, TYPE, World, event, running, send
from tests.waiting import until

pytestmark = pytest.mark.slow

LEASE = 0.3
HANDOVERS = 12
"""More often than an entry may kill its workers."""


@dataclass
class Worker:
    process: asyncio.subprocess.Process

    def holds(self, entry: dict[str, Any]) -> bool:
        """Its consumer is named by its host and its pid."""
        return f"-{self.process.pid}-" in entry["consumer"].decode()

    async def begun(self) -> None:
        assert self.process.stdout
        assert await asyncio.wait_for(self.process.stdout.readline(), 30) == b"begun\n"


class Workers:
    """Processes that share one inbox."""

    def __init__(self, world: World, database_url: str, redis_url: str, stack: AsyncExitStack) -> None:
        self.world = world
        self._told = (database_url, redis_url, SERVICE, TYPE)
        self._stack = stack

    async def start(self, way: str, *, lease: float = LEASE) -> Worker:
        return await self._stack.enter_async_context(self._started(str(lease), way))

    @asynccontextmanager
    async def _started(self, *how: str) -> AsyncIterator[Worker]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.kit.events.slow_worker_process", *self._told, *how),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            yield Worker(process)
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    async def finish(self) -> None:
        await self.world.redis.set(FINISH, "1")
        await until(self.world.idle)

    async def entry(self) -> dict[str, Any]:
        (entry,) = await self.world.pending()
        return entry

    async def counted(self, times: int) -> bool:
        return bool((await self.entry())["times_delivered"] == times)

    async def held_by(self, worker: Worker) -> bool:
        return worker.holds(await self.entry())


@pytest.fixture
async def workers(db: Database, redis: Redis, database_url: str, servers: Servers) -> AsyncIterator[Workers]:
    await redis.xgroup_create(STREAM, inbox_stream.GROUP, id="0", mkstream=True)
    async with AsyncExitStack() as stack:
        yield Workers(World(db, redis), database_url, servers.redis_url, stack)


async def test_workers_that_freeze_and_come_back_have_not_died_however_often(workers: Workers) -> None:
    slow = event()
    await send(workers.world.redis, slow)
    holder, other = await workers.start("waits"), await workers.start("waits")
    await until(workers.world.pending, 30)
    if await workers.held_by(other):
        holder, other = other, holder
    for _ in range(HANDOVERS):
        holder.process.send_signal(signal.SIGSTOP)
        await until(lambda now=other: workers.held_by(now), 30)  # type: ignore[misc]  # mypy infers no type of it
        holder.process.send_signal(signal.SIGCONT)
        await until(lambda: workers.counted(1))
        holder, other = other, holder
    await workers.finish()
    assert await workers.world.effects() == [slow.id]
    assert await workers.world.dead() == []


async def test_a_worker_whose_event_loop_is_held_up_keeps_its_lease(workers: Workers) -> None:
    slow, lease = event(), 4 * LEASE
    await send(workers.world.redis, slow)
    blocked = await workers.start("blocks", lease=lease)
    await blocked.begun()
    # Looks for what others have left as soon as it starts.
    await workers.start("waits", lease=lease)
    for _ in range(3):
        await asyncio.sleep(lease / 2)
        assert await workers.held_by(blocked)
    assert await workers.counted(1)
    await workers.finish()
    assert await workers.world.effects() == [slow.id]


async def test_a_worker_whose_event_loop_never_moves_again_loses_its_lease(workers: Workers) -> None:
    await send(workers.world.redis, event())
    hung = await workers.start("blocks")
    await hung.begun()
    peer = await workers.start("waits")
    await until(lambda: workers.held_by(peer), 30)
    assert await workers.counted(2), "as nobody has heard of the first one again"


async def test_workers_that_die_are_counted(workers: Workers) -> None:
    await send(workers.world.redis, event())
    for times in (1, 2):
        worker = await workers.start("dies")
        await worker.begun()
        await worker.process.wait()
        assert await workers.counted(times)
    await workers.start("waits")
    await until(lambda: workers.counted(3), 30)


async def test_while_postgres_is_away_nobody_dies(db: Database, redis: Redis, servers: Servers) -> None:
    """What came before may be a copy of something put aside, so Postgres has to be asked first: that fails, and fails again."""
    world, copy = World(db, redis, tuning=replace(QUICK, crash_limit=1, outage_seconds=0.05)), event()
    peers = [world.inbox(world.recorder(), lease=LEASE) for _ in range(2)]
    async with running(*peers):
        await servers.stop("postgres")
        try:
            await redis.xadd(STREAM, {"event": copy.to_bytes(), "again": "1"})
            await until(world.pending)
            for _ in range(4):
                await asyncio.sleep(LEASE)
                (entry,) = await world.pending()
                assert entry["times_delivered"] == 1
        finally:
            await servers.start("postgres")
        await until(world.idle)
    assert await world.effects() == [copy.id]
    assert await world.dead() == []


async def test_a_worker_that_claims_what_it_is_still_at_has_not_died(db: Database, redis: Redis) -> None:
    world = World(db, redis)
    begun, opened = asyncio.Event(), asyncio.Event()

    async def stand_still(_event: Any) -> None:
        begun.set()
        await opened.wait()

    async with running(world.inbox(stand_still)):
        await send(redis, event())
        await begun.wait()
        (entry,) = await world.pending()
        name, number = entry["consumer"].decode(), entry["message_id"]
        await redis.xclaim(STREAM, inbox_stream.GROUP, name, 0, [number], idle=10**7, retrycount=1, justid=True)

        async def claimed_and_taken_back() -> bool:
            (now,) = await world.pending()
            return bool(now["time_since_delivered"] < 10**6 and now["times_delivered"] == 1)

        await until(claimed_and_taken_back)
        opened.set()
        await until(world.idle)


async def test_a_delivery_is_taken_back_from_its_count_whoever_has_the_entry(redis: Redis) -> None:
    await send(redis, event())
    mine, theirs = (InboxStream(redis, SERVICE, lease_seconds=lease) for lease in (60, 0.001))
    assert await mine.take(1) == []  # which makes the group
    (entry,) = await mine.take(1)
    (claimed,) = await until(lambda: theirs.take(1))
    assert await mine.deliveries(entry) == 2
    await mine.uncount([entry])
    assert await theirs.deliveries(claimed) == 1
    assert not await theirs.keep([claimed])
    assert await mine.keep([entry]) == {entry.id}
    assert not await mine.acknowledge(entry)
    assert await theirs.acknowledge(claimed)
    await mine.uncount([entry])
    assert await redis.xlen(STREAM) == 0
