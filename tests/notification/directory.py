"""Fakes of auth's directory of accounts and of story's directory of stories, over gRPC."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

from grpc.aio import ServicerContext
from storymesh.auth.v1 import directory_service_pb2 as pb
from storymesh.auth.v1 import directory_service_pb2_grpc as directory
from storymesh.auth.v1.user_pb2 import User
from storymesh.story.v1 import directory_service_pb2 as stories_pb
from storymesh.story.v1 import directory_service_pb2_grpc as stories_grpc
from storymesh.story.v1.story_link_pb2 import StoryLink

from kit.errors import MeshError, NotFound
from kit.rpc.server import AddToServer, S, Server
from kit.runtime import base64url
from kit.runtime.settings import ServiceSettings
from tests.identity import Issuer, service_tokens

NAME = pb.DESCRIPTOR.services_by_name["DirectoryService"].full_name


class Directory(directory.DirectoryServiceServicer):
    """Accounts that the test adds and removes."""

    def __init__(self) -> None:
        self.users: dict[str, User] = {}
        self.asked = 0

    def add(self, email: str = "ada@example.com", first_name: str = "Ada") -> UUID:
        user_id = uuid4()
        self.users[str(user_id)] = User(id=str(user_id), email=email, first_name=first_name)
        return user_id

    def delete(self, user_id: UUID) -> None:
        del self.users[str(user_id)]

    async def GetUser(self, request: pb.GetUserRequest, context: ServicerContext[Any, Any]) -> pb.GetUserResponse:
        self.asked += 1
        user = self.users.get(request.user_id)
        if user is None:
            raise NotFound
        return pb.GetUserResponse(user=user)


class StoryLinks(stories_grpc.DirectoryServiceServicer):
    """Links of stories, the same each time; the test deletes stories and takes links back."""

    def __init__(self) -> None:
        self.deleted: set[UUID] = set()
        self.revoked: set[UUID] = set()
        self.asked: list[int] = []
        """The number of stories of each call."""
        self.error: MeshError | None = None
        """Raised by the next calls."""

    @staticmethod
    def path(story_id: UUID) -> str:
        return f"/s/{base64url.encode(hashlib.sha256(story_id.bytes).digest())}"

    async def LinkStory(
        self, request: stories_pb.LinkStoryRequest, context: ServicerContext[Any, Any]
    ) -> stories_pb.LinkStoryResponse:
        self._note(1)
        story_id = UUID(request.story_id)
        if story_id in self.deleted:
            raise NotFound
        return stories_pb.LinkStoryResponse(link=self._link(story_id))

    async def LinkStories(
        self, request: stories_pb.LinkStoriesRequest, context: ServicerContext[Any, Any]
    ) -> stories_pb.LinkStoriesResponse:
        self._note(len(request.story_ids))
        left = [each for each in map(UUID, request.story_ids) if each not in self.deleted]
        linked = [stories_pb.LinkedStory(story_id=str(each), link=self._link(each)) for each in left]
        return stories_pb.LinkStoriesResponse(stories=linked)

    def _note(self, stories: int) -> None:
        self.asked.append(stories)
        if self.error:
            raise self.error

    def _link(self, story_id: UUID) -> StoryLink | None:
        return None if story_id in self.revoked else StoryLink(story_id=str(story_id), path=self.path(story_id))


def serving(accounts: Directory, address: str = "127.0.0.1:0") -> AbstractAsyncContextManager[str]:
    """Serve the directory of accounts, as auth does, and give its address."""
    return _serving("auth", directory.add_DirectoryServiceServicer_to_server, accounts, address)


def serving_stories(links: StoryLinks, address: str = "127.0.0.1:0") -> AbstractAsyncContextManager[str]:
    """Serve the directory of stories, as story does, and give its address."""
    return _serving("story", stories_grpc.add_DirectoryServiceServicer_to_server, links, address)


@asynccontextmanager
async def _serving(service: str, add: AddToServer[S], servicer: S, address: str) -> AsyncIterator[str]:
    settings = ServiceSettings(
        listen=address, mesh_key="bW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW0=", drain_seconds=0.1
    )
    server = Server(settings, required={})
    server.add(add, servicer)
    running = asyncio.create_task(server.run(Issuer().access_tokens(), service_tokens(service)))
    yield await server.address
    server.stopping.set()
    await running
