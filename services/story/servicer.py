"""Translates the RPCs of the story service into calls of operations, and their results into messages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any
from uuid import UUID

from google.api.httpbody_pb2 import HttpBody
from grpc.aio import ServicerContext
from storymesh.story.v1 import (
    directory_service_pb2,
    directory_service_pb2_grpc,
    story_link_pb2,
    story_link_service_pb2,
    story_link_service_pb2_grpc,
    story_pb2,
    story_service_pb2_grpc,
)
from storymesh.story.v1 import story_service_pb2 as pb

from kit.identity.caller import caller_of
from kit.rpc.stream_end import say_ended
from kit.rpc.timestamps import set_time
from mesh import pages

from .model import (
    DEFAULT_LANGUAGE,
    Chunk,
    Done,
    Heartbeat,
    Length,
    Reconnect,
    Reset,
    Snapshot,
    State,
    StateChange,
    Step,
    Story,
    Wish,
)
from .model.links import Link
from .model.story_page import story_page
from .operations.links import Links
from .operations.stories import Stories
from .operations.watching import Watches

Context = ServicerContext[Any, Any]

_STATES = {
    State.QUEUED: story_pb2.STORY_STATE_QUEUED,
    State.RUNNING: story_pb2.STORY_STATE_RUNNING,
    State.COMPLETED: story_pb2.STORY_STATE_COMPLETED,
    State.FAILED: story_pb2.STORY_STATE_FAILED,
    State.CANCELLED: story_pb2.STORY_STATE_CANCELLED,
}
_PROTO_STATES = {number: state for state, number in _STATES.items()}
_LENGTHS = {
    story_pb2.STORY_LENGTH_UNSPECIFIED: Length.MEDIUM,
    story_pb2.STORY_LENGTH_SHORT: Length.SHORT,
    story_pb2.STORY_LENGTH_MEDIUM: Length.MEDIUM,
    story_pb2.STORY_LENGTH_LONG: Length.LONG,
}
_PROTO_LENGTHS = {length: number for number, length in _LENGTHS.items()}


class StoryServicer(story_service_pb2_grpc.StoryServiceServicer):
    """Implements storymesh.story.v1.StoryService."""

    def __init__(self, stories: Stories, watches: Watches) -> None:
        self._stories = stories
        self._watches = watches

    async def CreateStory(self, request: pb.CreateStoryRequest, context: Context) -> pb.CreateStoryResponse:
        wish = Wish(
            preferences=tuple(request.preferences),
            theme=request.theme,
            prompt=request.prompt,
            length=_LENGTHS[request.length],
            language=request.language or DEFAULT_LANGUAGE,
        )
        story = await self._stories.request(caller_of(context), wish, request.request_id or None)
        return pb.CreateStoryResponse(story=_to_proto(story))

    async def GetStory(self, request: pb.GetStoryRequest, context: Context) -> pb.GetStoryResponse:
        story = await self._stories.get(caller_of(context), UUID(request.story_id))
        return pb.GetStoryResponse(story=_to_proto(story))

    async def ListStories(self, request: pb.ListStoriesRequest, context: Context) -> pb.ListStoriesResponse:
        state = _PROTO_STATES.get(request.state)
        page = await self._stories.list(caller_of(context), state, request.page_size, request.page_token)
        return pb.ListStoriesResponse(stories=map(_to_proto, page.items), next_page_token=page.next_token)

    async def CancelStory(self, request: pb.CancelStoryRequest, context: Context) -> pb.CancelStoryResponse:
        story = await self._stories.cancel(caller_of(context), UUID(request.story_id))
        return pb.CancelStoryResponse(story=_to_proto(story))

    async def RetryStory(self, request: pb.RetryStoryRequest, context: Context) -> pb.RetryStoryResponse:
        story = await self._stories.retry(caller_of(context), UUID(request.story_id))
        return pb.RetryStoryResponse(story=_to_proto(story))

    async def DeleteStory(self, request: pb.DeleteStoryRequest, context: Context) -> pb.DeleteStoryResponse:
        await self._stories.delete(caller_of(context), UUID(request.story_id))
        return pb.DeleteStoryResponse()

    async def WatchStory(self, request: pb.WatchStoryRequest, context: Context) -> AsyncIterator[pb.WatchStoryResponse]:
        caller, story_id = caller_of(context), UUID(request.story_id)
        if await self._watches.nothing_is_new(caller, story_id, request.resume_token):
            await say_ended(context)
        watch = self._watches.watch(caller, story_id, request.resume_token)
        async with aclosing(watch) as steps:
            async for token, step in steps:
                yield _step_to_proto(token, step)


class StoryLinkServicer(story_link_service_pb2_grpc.StoryLinkServiceServicer):
    """Implements storymesh.story.v1.StoryLinkService."""

    def __init__(self, links: Links) -> None:
        self._links = links

    async def CreateStoryLink(
        self, request: story_link_service_pb2.CreateStoryLinkRequest, context: Context
    ) -> story_link_service_pb2.CreateStoryLinkResponse:
        link = await self._links.create(caller_of(context), UUID(request.story_id))
        return story_link_service_pb2.CreateStoryLinkResponse(link=_link_to_proto(self._links, link))

    async def ListStoryLinks(
        self, request: story_link_service_pb2.ListStoryLinksRequest, context: Context
    ) -> story_link_service_pb2.ListStoryLinksResponse:
        page = await self._links.list(caller_of(context), request.page_size, request.page_token)
        return story_link_service_pb2.ListStoryLinksResponse(
            links=(_link_to_proto(self._links, link) for link in page.items), next_page_token=page.next_token
        )

    async def RevokeStoryLink(
        self, request: story_link_service_pb2.RevokeStoryLinkRequest, context: Context
    ) -> story_link_service_pb2.RevokeStoryLinkResponse:
        await self._links.revoke(caller_of(context), UUID(request.story_id))
        return story_link_service_pb2.RevokeStoryLinkResponse()

    async def GetStoryPage(
        self, request: story_link_service_pb2.GetStoryPageRequest, context: Context
    ) -> story_link_service_pb2.GetStoryPageResponse:
        html = story_page(await self._links.open(request.token))
        return story_link_service_pb2.GetStoryPageResponse(
            page=HttpBody(content_type=pages.MEDIA_TYPE, data=html.encode())
        )


class DirectoryServicer(directory_service_pb2_grpc.DirectoryServiceServicer):
    """Implements storymesh.story.v1.DirectoryService."""

    def __init__(self, links: Links) -> None:
        self._links = links

    async def LinkStory(
        self, request: directory_service_pb2.LinkStoryRequest, context: Context
    ) -> directory_service_pb2.LinkStoryResponse:
        link = await self._links.of_mail(UUID(request.story_id))
        return directory_service_pb2.LinkStoryResponse(link=_link_to_proto(self._links, link) if link else None)

    async def LinkStories(
        self, request: directory_service_pb2.LinkStoriesRequest, context: Context
    ) -> directory_service_pb2.LinkStoriesResponse:
        found = await self._links.of_mails([UUID(each) for each in request.story_ids])
        return directory_service_pb2.LinkStoriesResponse(
            stories=[
                directory_service_pb2.LinkedStory(
                    story_id=str(story_id), link=_link_to_proto(self._links, link) if link else None
                )
                for story_id, link in found.items()
            ]
        )


def _link_to_proto(links: Links, link: Link) -> story_link_pb2.StoryLink:
    message = story_link_pb2.StoryLink(story_id=str(link.story_id), path=links.path_of(link))
    set_time(message.create_time, link.created_at)
    set_time(message.expire_time, link.expires_at)
    return message


def _to_proto(story: Story) -> story_pb2.Story:
    message = story_pb2.Story(
        id=str(story.id),
        state=_STATES[story.state],
        title=story.title,
        text=story.text,
        preferences=story.wish.preferences,
        theme=story.wish.theme,
        length=_PROTO_LENGTHS[story.wish.length],
        language=story.wish.language,
        attempt=story.attempt,
        queue_position=story.queue_position,
        writer=story.writer,
        model=story.model,
        failure_reason=story.failure_reason,
        prompt_tokens=story.prompt_tokens,
        completion_tokens=story.completion_tokens,
    )
    set_time(message.create_time, story.created_at)
    set_time(message.start_time, story.started_at)
    set_time(message.complete_time, story.completed_at)
    return message


def _step_to_proto(token: str, step: Step) -> pb.WatchStoryResponse:
    message = pb.WatchStoryResponse(resume_token=token)
    match step:
        case Snapshot(text):
            message.snapshot.text = text
            message.snapshot.SetInParent()
        case Chunk(text):
            message.chunk.text = text
        case Reset(attempt):
            message.reset.attempt = attempt
        case StateChange(state):
            message.state.state = _STATES[state]
        case Heartbeat():
            message.heartbeat.SetInParent()
        case Done(story):
            message.done.story.CopyFrom(_to_proto(story))
        case Reconnect(after):
            message.reconnect.after.FromTimedelta(after)
    return message
