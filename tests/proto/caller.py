"""Code of a caller that uses the generated stubs. Checked by a strict type checker, never run."""

import grpc
from grpc import aio
from storymesh.auth.v1.session_service_pb2 import CreateSessionRequest
from storymesh.auth.v1.session_service_pb2_grpc import SessionServiceStub
from storymesh.story.v1.story_pb2 import STORY_LENGTH_SHORT, Story, StoryLength
from storymesh.story.v1.story_service_pb2 import CreateStoryRequest, WatchStoryRequest, WatchStoryResponse
from storymesh.story.v1.story_service_pb2_grpc import StoryServiceStub


def synchronous(address: str, length: StoryLength.ValueType = STORY_LENGTH_SHORT) -> Story:
    with grpc.insecure_channel(address) as channel:
        signed_in = SessionServiceStub(channel).CreateSession(CreateSessionRequest(login="ada", password="secret"))
        auth = (("authorization", f"Bearer {signed_in.tokens.access_token}"),)
        stub = StoryServiceStub(channel)
        created = stub.CreateStory(CreateStoryRequest(length=length, preferences=["foxes"]), metadata=auth)
        words: list[str] = [step.chunk.text for step in stub.WatchStory(WatchStoryRequest(story_id=created.story.id))]
        print(*words)
        return created.story


async def asynchronous(address: str) -> list[WatchStoryResponse]:
    async with aio.insecure_channel(address) as channel:
        stub = StoryServiceStub(channel)
        created = await stub.CreateStory(CreateStoryRequest(theme="rain"), timeout=5)
        return [step async for step in stub.WatchStory(WatchStoryRequest(story_id=created.story.id))]
