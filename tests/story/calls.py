"""Calls of the story API, and reads of the database behind it."""

from __future__ import annotations

from uuid import UUID

from google.rpc.error_details_pb2 import RetryInfo
from grpc.aio import AioRpcError
from sqlalchemy import select
from storymesh.story.v1 import story_pb2
from storymesh.story.v1 import story_service_pb2 as pb

from kit.events import outbox
from services.story import store
from services.story.model import Story
from tests.statuses import detail
from tests.story.conftest import Person, StoryWorld


async def create(person: Person, **fields: object) -> story_pb2.Story:
    response = await person.stub.CreateStory(pb.CreateStoryRequest(**fields), metadata=person.auth)  # type: ignore[arg-type]
    return response.story


async def get(person: Person, story_id: str) -> story_pb2.Story:
    return (await person.stub.GetStory(pb.GetStoryRequest(story_id=story_id), metadata=person.auth)).story


async def cancel(person: Person, story_id: str) -> story_pb2.Story:
    return (await person.stub.CancelStory(pb.CancelStoryRequest(story_id=story_id), metadata=person.auth)).story


async def retry(person: Person, story_id: str) -> story_pb2.Story:
    return (await person.stub.RetryStory(pb.RetryStoryRequest(story_id=story_id), metadata=person.auth)).story


async def delete(person: Person, story_id: str) -> None:
    await person.stub.DeleteStory(pb.DeleteStoryRequest(story_id=story_id), metadata=person.auth)


async def found(world: StoryWorld, story_id: str) -> Story:
    async with world.db.transaction() as tx:
        story = await store.stories.find(tx, UUID(story_id))
    assert story is not None
    return story


async def events_of(world: StoryWorld, story_id: str) -> list[str]:
    async with world.db.transaction() as tx:
        query = select(outbox.table.c.type).where(outbox.table.c.key == story_id).order_by(outbox.table.c.position)
        return [name.rpartition(".")[2] for name in await tx.scalars(query)]


def retry_seconds(error: AioRpcError) -> float:
    info = detail(error, RetryInfo)
    assert info is not None
    return info.retry_delay.ToTimedelta().total_seconds()
