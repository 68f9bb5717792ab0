"""The notification service's calls to other services."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from uuid import UUID

from grpc.aio import Channel
from storymesh.auth.v1 import directory_service_pb2 as accounts
from storymesh.auth.v1 import directory_service_pb2_grpc as accounts_grpc
from storymesh.story.v1 import directory_service_pb2 as stories
from storymesh.story.v1 import directory_service_pb2_grpc as stories_grpc

from kit.errors import NotFound

from .model import Recipient


class AccountDirectory:
    """Auth's accounts, read at the moment of sending."""

    def __init__(self, channel: Channel) -> None:
        self._stub = accounts_grpc.DirectoryServiceStub(channel)

    async def find(self, user_id: UUID) -> Recipient | None:
        """The account's address and name; None if it was deleted. Raises Unavailable when auth does not answer."""
        try:
            response = await self._stub.GetUser(accounts.GetUserRequest(user_id=str(user_id)))
        except NotFound:
            return None
        return Recipient(response.user.email, response.user.first_name, user_id)


class StoryDirectory:
    """Story's links, asked for at the moment of sending."""

    def __init__(self, channel: Channel) -> None:
        self._stub = stories_grpc.DirectoryServiceStub(channel)

    async def page_of(self, story_id: UUID) -> str | None:
        """The path of the story's page under the public URL; empty if its owner took the link back, None if the story is gone.

        Raises Unavailable when story does not answer.
        """
        try:
            response = await self._stub.LinkStory(stories.LinkStoryRequest(story_id=str(story_id)))
        except NotFound:
            return None
        return response.link.path

    async def pages_of(self, story_ids: Collection[UUID]) -> Mapping[UUID, str]:
        """The paths of the stories' pages, as `page_of` has them; those that are gone are missing. At most 100 stories.

        Raises Unavailable when story does not answer.
        """
        response = await self._stub.LinkStories(stories.LinkStoriesRequest(story_ids=map(str, story_ids)))
        return {UUID(each.story_id): each.link.path for each in response.stories}
