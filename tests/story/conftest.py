"""Fixtures: the story service in this process, with real Postgres and Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import grpc
import pytest
from redis.asyncio import Redis
from storymesh.story.v1.story_service_pb2_grpc import StoryServiceStub

from kit.data.database import Database
from kit.events.inbox import Inbox
from kit.events.relay import Relay
from kit.rpc.resources import Resources
from kit.rpc.server import Server
from kit.runtime.clock import system_clock
from mesh.event_routes import routes
from services.story import worker
from services.story.__main__ import api
from services.story.adapters.writers import Writer
from services.story.config import StorySettings, StoryWorkerSettings
from services.story.model import Limits
from services.story.operations import Operations, WorkerOperations, operations, worker_operations
from services.story.operations.erasing import Erasing
from services.story.operations.interruptions import Interruptions
from services.story.operations.spending import Tokens
from services.story.operations.sweeping import Sweeper
from services.story.operations.writing import Writing
from tests.conftest import empty
from tests.identity import MESH_KEY, Issuer, bearer
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
    """The database, Redis and the scripted writer behind the API. Tests start the workers that they need."""

    settings: StorySettings
    resources: Resources
    stub: StoryServiceAsyncStub
    server: Server
    channel: grpc.aio.Channel
    issuer: Issuer
    ops: Operations
    interruptions: Interruptions
    """The subscription that all workers of the test share."""
    account_preferences: tuple[str, ...] = ()
    lease: timedelta = timedelta(seconds=2)
    passed: timedelta = timedelta()
    """How far the clock of the operations is ahead."""

    @property
    def db(self) -> Database:
        return self.resources.db

    @property
    def redis(self) -> Redis:
        return self.resources.redis

    def person(self) -> Person:
        return Person(self.stub, self.issuer)

    async def preferences_of(self, _user_id: UUID) -> tuple[str, ...]:
        return self.account_preferences

    def worker_settings(self, **changes: object) -> StoryWorkerSettings:
        return StoryWorkerSettings.model_validate(
            {
                "database_url": self.resources.database_url,
                "mesh_key": MESH_KEY,
                "lease_seconds": self.lease.total_seconds(),
                "story_seconds": 30,
                "story_life_seconds": 3600,
                "story_attempts": 3,
                # A writer that spends tokens, if the test gives some.
                "writer": "openai",
                "max_failures": 5,
                **changes,
            }
        )

    def working(
        self,
        writer: Writer,
        *,
        backoff: Callable[[int], float] = lambda _: 0.0,
        tokens: Tokens | None = None,
        **changes: object,
    ) -> WorkerOperations:
        """Build the operations of a worker with this writer; `changes` are settings."""
        settings, hearing = self.worker_settings(**changes), self.interruptions
        return worker_operations(
            settings, self.resources, writer, interruptions=hearing, backoff=backoff, tokens=tokens
        )

    def writing(self, writer: Writer, **changes: Any) -> Writing:
        return self.working(writer, **changes).writing

    def sweeper(self) -> Sweeper:
        return self.working(ScriptedWriter()).sweeper

    def inbox(self, writer: Writer) -> Inbox:
        return worker.stories_inbox(self.worker_settings(), self.resources, self.writing(writer))

    def accounts_inbox(self) -> Inbox:
        return worker.accounts_inbox(self.worker_settings(), self.resources, self.erasing())

    def erasing(self) -> Erasing:
        return self.working(ScriptedWriter()).erasing

    def relay(self) -> Relay:
        return Relay(self.db, self.redis, routes(), service="story", database_url=self.resources.database_url)


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
        mesh_key=MESH_KEY,
        cursor_key=KEY,
        link_key=b"l" * 32,
        drain_seconds=2,
        heartbeat_seconds=0.5,
        write_seconds=1,
        # The writer whose languages depend on the model, so the server refuses none.
        writer="openai",
        stories_unfinished=ROOMY.unfinished,
        stories_a_day=ROOMY.a_day,
        stories_backlog=ROOMY.backlog,
        watches_per_person=20,
        watches=30,
        watched_stories=25,
        watch_entries_behind=50,
    )

    async def preferences_of(user_id: UUID) -> tuple[str, ...]:
        return await made.preferences_of(user_id)

    def clock() -> datetime:
        return system_clock() + made.passed

    async with Resources(
        "story", settings, clock=clock, db=db, redis=redis, revocations=issuer.revocations
    ) as resources:
        ops = operations(settings, resources, preferences_of)
        server = api(settings, resources, ops)
        running = asyncio.create_task(server.run(issuer.access_tokens(), resources.service_tokens))
        async with grpc.aio.insecure_channel(await server.address) as channel:
            made = StoryWorld(
                settings, resources, StoryServiceStub(channel), server, channel, issuer, ops, Interruptions(redis)
            )
            yield made
        server.stopping.set()
        await running


@pytest.fixture
async def working(world: StoryWorld) -> AsyncIterator[ScriptedWriter]:
    """Run a relay and a worker; the test decides each word by the yielded writer."""
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
