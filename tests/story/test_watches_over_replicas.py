"""What a person may watch at a time, over two replicas with one rate limiter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
from grpc import StatusCode
from grpc.aio import AioRpcError
from storymesh.story.v1.story_service_pb2 import CancelStoryRequest
from storymesh.story.v1.story_service_pb2_grpc import StoryServiceStub

from kit.rpc.resources import Resources
from local.harness import Servers
from services.story.__main__ import api
from services.story.operations import operations
from tests.ratelimit.watch_rules import MOST, bounding_watches
from tests.statuses import reason_of
from tests.story.conftest import Person, StoryWorld
from tests.story.pen import queued
from tests.story.watcher import watching
from tests.waiting import until


@asynccontextmanager
async def replica(world: StoryWorld, limiter: str) -> AsyncIterator[grpc.aio.Channel]:
    settings = world.settings.model_copy(update={"ratelimit_target": limiter})
    revocations = world.issuer.revocations
    async with Resources("story", settings, db=world.db, redis=world.redis, revocations=revocations) as resources:
        server = api(settings, resources, operations(settings, resources, world.preferences_of))
        running = asyncio.create_task(server.run(world.issuer.access_tokens(), resources.service_tokens))
        async with grpc.aio.insecure_channel(await server.address) as channel:
            yield channel
        server.stopping.set()
        await running


async def test_a_person_watches_only_so_many_stories_at_all_replicas_together(
    world: StoryWorld, servers: Servers
) -> None:
    async with (
        bounding_watches(servers) as limiter,
        replica(world, limiter) as one,
        replica(world, limiter) as other,
    ):
        person = world.person()
        at = [Person(StoryServiceStub(channel), world.issuer, person.id) for channel in (one, other)]
        story_id = str(await queued(world.db, person.id))
        stacks = [AsyncExitStack() for _ in range(12)]

        async def opens(number: int) -> bool:
            watcher = await stacks[number].enter_async_context(watching(at[number % 2], story_id))
            try:
                return await watcher.step() == "snapshot"
            except AioRpcError as refused:
                return (refused.code(), reason_of(refused)) != (StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_WATCHES")

        opened = await asyncio.gather(*map(opens, range(12)))
        assert sum(opened) == MOST
        # A finished story is told at once, so that its watch needs no place.
        finished = str(await queued(world.db, person.id))
        await at[0].stub.CancelStory(CancelStoryRequest(story_id=finished), metadata=at[0].auth)
        async with watching(at[0], finished) as watcher:
            assert await watcher.step() == "snapshot"
        await stacks[opened.index(True)].aclose()
        closed = opened.index(False)

        async def room() -> bool:
            await stacks[closed].aclose()
            return await opens(closed)

        await until(room)
        for stack in stacks:
            await stack.aclose()


async def test_a_replica_whose_limiter_is_away_serves_watches_by_its_own_bound(world: StoryWorld) -> None:
    async with replica(world, "127.0.0.1:9") as channel, AsyncExitStack() as stack:
        person = world.person()
        here = Person(StoryServiceStub(channel), world.issuer, person.id)
        story_id = str(await queued(world.db, person.id))
        for _ in range(MOST + 2):
            watcher = await stack.enter_async_context(watching(here, story_id))
            assert await watcher.step() == "snapshot"
