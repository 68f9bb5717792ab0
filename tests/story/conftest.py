"""The story service in this process, on real servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import grpc
import pytest
from redis.asyncio import Redis
from storymesh.story.v1.story_service_pb2_grpc import StoryServiceStub, add_StoryServiceServicer_to_server

from kit.data.database import Database
from kit.data.paging import Pages
from kit.events.inbox import Inbox
from kit.events.inbox_stream import waiting_since
from kit.events.relay import Relay
from kit.identity.signing import Signer
from kit.rpc.server import Server
from kit.runtime.clock import system_clock
from mesh.event_routes import routes
from services.story import worker
from services.story.__main__ import SERVICE
from services.story.adapters.writers import Writer
from services.story.config import StorySettings
from services.story.model import Limits
from services.story.operations.admission import Admission
from services.story.operations.erasing import Erasing
from services.story.operations.interruptions import Interruptions
from services.story.operations.stories import Stories
from services.story.operations.sweeping import Sweeper
from services.story.operations.watching import Watches, WatchLimits
from services.story.operations.writing import Writing
from services.story.servicer import StoryServicer
from services.story.store.progress import Progress
from tests.conftest import empty
from tests.identity import Issuer, bearer, service_tokens
from tests.story.scripted import ScriptedWriter

if TYPE_CHECKING:
    from storymesh.story.v1.story_service_pb2_grpc import StoryServiceAsyncStub

KEY = b"c" * 32
ROOMY = Limits(unfinished=1000, a_day=1000, backlog=1000)


@dataclass
class Person:
    """A signed-in user of the API."""

    stub: StoryServiceAsyncStub
    issuer: Issuer
    id: UUID = field(default_factory=uuid4)

    @property
    def auth(self) -> tuple[tuple[str, str], ...]:
        return bearer(self.issuer.token(self.id))


@dataclass
class StoryWorld:
    """The database, Redis and the scripted writer behind the API; workers are started by the tests that want them."""

    db: Database
    redis: Redis
    stub: StoryServiceAsyncStub
    server: Server
    issuer: Issuer
    database_url: str
    stories: Stories
    admission: Admission
    interruptions: Interruptions
    account_preferences: tuple[str, ...] = ()
    lease: timedelta = timedelta(seconds=2)

    def person(self) -> Person:
        return Person(self.stub, self.issuer)

    def writing(
        self,
        writer: Writer,
        *,
        attempts: int = 3,
        seconds: float = 30,
        life: timedelta = timedelta(hours=1),
        limit: int = 0,
        backoff: Callable[[int], float] = lambda _: 0.0,
    ) -> Writing:
        return Writing(
            self.db,
            Progress(self.redis),
            writer,
            system_clock,
            interruptions=self.interruptions,
            lease=self.lease,
            seconds=seconds,
            life=life,
            attempts=attempts,
            limit=limit,
            backoff=backoff,
        )

    def sweeper(self) -> Sweeper:
        return Sweeper(self.db, partial(waiting_since, self.redis, "story"))

    def inbox(self, writer: Writer) -> Inbox:
        return Inbox(
            self.db,
            self.redis,
            "story",
            worker.handlers(self.writing(writer)),
            lease_seconds=self.lease.total_seconds(),
            concurrency=2,
            max_failures=5,
        )

    def accounts_inbox(self) -> Inbox:
        return Inbox(
            self.db,
            self.redis,
            "story-accounts",
            worker.account_handlers(self.erasing()),
            lease_seconds=self.lease.total_seconds(),
            concurrency=2,
            max_failures=5,
        )

    def erasing(self) -> Erasing:
        return Erasing(self.db, Progress(self.redis), system_clock)

    def relay(self) -> Relay:
        return Relay(self.db, self.redis, routes(), service="story", database_url=self.database_url)


@pytest.fixture
async def world(
    database_of: Callable[[str], Database], migrated: Callable[[str], str], redis: Redis
) -> AsyncIterator[StoryWorld]:
    db = database_of("story")
    await empty(db)
    issuer = Issuer()
    settings = StorySettings(
        listen="127.0.0.1:0",
        database_url=migrated("story"),
        mesh_key="bW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW0=",
        cursor_key="Y2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2M=",
        drain_seconds=2,
        heartbeat_seconds=0.5,
        write_seconds=1,
    )
    server = Server(settings, required={"postgres": db.check})
    signer = Signer(KEY)

    async def preferences_of(_user_id: UUID) -> tuple[str, ...]:
        return made.account_preferences

    admission = Admission(ROOMY)
    stories = Stories(db, Pages(signer), preferences_of, system_clock, progress=Progress(redis), admission=admission)
    limits = WatchLimits(per_person=20, altogether=30, stories=25, entries_behind=50)
    watches = Watches(db, stories, Progress(redis), signer, limits, heartbeat_seconds=settings.heartbeat_seconds)
    server.background(watches.run)
    server.add(SERVICE, lambda to: add_StoryServiceServicer_to_server(StoryServicer(stories, watches), to))
    running = asyncio.create_task(server.run(issuer.access_tokens(), service_tokens("story")))
    async with grpc.aio.insecure_channel(await server.address) as channel:
        stub = StoryServiceStub(channel)
        made = StoryWorld(db, redis, stub, server, issuer, migrated("story"), stories, admission, Interruptions(redis))
        yield made
    server.stopping.set()
    await running


@pytest.fixture
async def working(world: StoryWorld) -> AsyncIterator[ScriptedWriter]:
    """A relay and a worker at work; the test holds the pen."""
    writer = ScriptedWriter()
    stopping = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(world.relay().run(stopping))
        group.create_task(world.inbox(writer).run(stopping))
        group.create_task(world.accounts_inbox().run(stopping))
        group.create_task(world.interruptions.run(stopping))
        yield writer
        writer.release()
        stopping.set()
