"""The watches of one replica, called without the API, so that hundreds of watchers cost little."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, nullcontext
from uuid import UUID, uuid4

from redis.asyncio import Redis

from kit.identity.caller import Caller, Role
from kit.rpc.resources import Resources
from services.story.model import Chunk, Done, Reconnect, Reset, Snapshot, Step
from services.story.operations import operations
from services.story.operations.watching import Watches
from tests.story.conftest import StoryWorld


def caller(user_id: UUID) -> Caller:
    return Caller(user_id=user_id, session_id=uuid4(), role=Role.USER, kid="k")


class Replica:
    """The watches of one replica. `leave` begins its drain."""

    def __init__(self, watches: Watches, redis: Redis) -> None:
        self.redis = redis
        self.watches = watches
        self._stopping = asyncio.Event()
        self._beginning = asyncio.Semaphore(10)
        """A watch that waits for one of the pool's 10 connections longer than 3 s is refused, as on a busy machine."""

    def leave(self) -> None:
        self._stopping.set()

    async def run(self) -> None:
        await self.watches.run(self._stopping)

    async def readers(self) -> int:
        """The number of Redis connections that block in a read of entries."""
        return int((await self.redis.info("clients"))["blocked_clients"])

    async def idle(self) -> bool:
        return await self.readers() == 0

    @asynccontextmanager
    async def watching(self, owner_id: UUID, story_id: UUID, token: str = "") -> AsyncIterator[View]:
        async with aclosing(self.watches.watch(caller(owner_id), story_id, token)) as steps:
            yield View(steps, self._beginning)


class View:
    """A client's view of a story, built from the steps of its watch."""

    def __init__(self, steps: AsyncGenerator[tuple[str, Step], None], beginning: asyncio.Semaphore) -> None:
        self._steps = steps
        self._beginning = beginning
        self.text = ""
        self.token = ""
        self.chunks: list[str] = []
        self.seen: list[Step] = []

    async def step(self) -> Step:
        async with nullcontext() if self.seen else self._beginning, asyncio.timeout(20):
            self.token, step = await anext(self._steps)
        match step:
            case Snapshot(text):
                self.text = text
            case Reset():
                self.text = ""
            case Chunk(text):
                self.text += text
                self.chunks.append(text)
        self.seen.append(step)
        return step

    async def until(self, *kinds: type[Step]) -> Step:
        while not isinstance(step := await self.step(), kinds):
            pass
        return step

    async def until_text(self, text: str) -> None:
        while self.text != text:
            await self.step()

    async def to_the_end(self) -> Done | Reconnect:
        step = await self.until(Done, Reconnect)
        assert isinstance(step, Done | Reconnect)
        return step


@asynccontextmanager
async def replica(
    world: StoryWorld,
    redis: Redis | None = None,
    *,
    entries_behind: int = 500,
    heartbeat_seconds: float = 60,
    looks: bool = True,
) -> AsyncIterator[Replica]:
    """Run a replica. With `looks=False` it does not poll the database and learns of changes from entries only."""
    settings = world.settings.model_copy(
        update={
            "watches_per_person": 1000,
            "watches": 1000,
            "watched_stories": 100,
            "watch_entries_behind": entries_behind,
            "heartbeat_seconds": heartbeat_seconds,
        }
    )
    resources = Resources("story", settings, db=world.db, redis=redis or world.redis)
    made = Replica(operations(settings, resources, world.preferences_of).watches, resources.redis)
    running = asyncio.create_task(made.run() if looks else asyncio.sleep(0))
    try:
        yield made
    finally:
        made.leave()
        await running
