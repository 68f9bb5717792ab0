"""Reads all pages of lists, and watches stories while they are written."""

from __future__ import annotations

import argparse
import asyncio
import uuid
from typing import TextIO

from grpc import StatusCode
from storymesh.auth.v1.session_pb2 import Session
from storymesh.auth.v1.session_service_pb2 import ListSessionsRequest
from storymesh.story.v1 import story_pb2
from storymesh.story.v1.story_service_pb2 import CreateStoryRequest, ListStoriesRequest, WatchStoryRequest

from .client import Storymesh
from .errors import StorymeshError
from .printing import plain

_PAGE = 100
_TRIES = 10
"""Number of consecutive failures of a watch, without a message in between, before it gives up."""

_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 5.0


async def all_sessions(mesh: Storymesh) -> list[Session]:
    found: list[Session] = []
    request = ListSessionsRequest(page_size=_PAGE)
    while True:
        page = await mesh.sessions.ListSessions(request)
        found += page.sessions
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


async def all_stories(mesh: Storymesh) -> list[story_pb2.Story]:
    found: list[story_pb2.Story] = []
    request = ListStoriesRequest(page_size=_PAGE)
    while True:
        page = await mesh.stories.ListStories(request)
        found += page.stories
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


async def ask(mesh: Storymesh, options: argparse.Namespace) -> str:
    """Requests a story and returns its id."""
    length = f"STORY_LENGTH_{options.length.upper()}" if options.length else "STORY_LENGTH_UNSPECIFIED"
    request = CreateStoryRequest(
        preferences=options.preference,
        theme=options.theme,
        prompt=options.prompt,
        length=story_pb2.StoryLength.Value(length),
        language=options.language,
        request_id=str(uuid.uuid4()),
    )
    return (await mesh.stories.CreateStory(request)).story.id


def completed(story: story_pb2.Story) -> bool:
    return story.state == story_pb2.STORY_STATE_COMPLETED


async def watch(mesh: Storymesh, story_id: str, output: TextIO) -> story_pb2.Story:
    """Prints the story while it is written and returns the stored one. Resumes after interruptions. Raises StorymeshError."""
    page = _Page(output)
    request = WatchStoryRequest(story_id=story_id)
    failures = 0
    while True:
        pause_seconds = _PAUSE_SECONDS
        try:
            async for message in mesh.stories.WatchStory(request):
                failures = 0
                request.resume_token = message.resume_token or request.resume_token
                match message.WhichOneof("event"):
                    case "snapshot":
                        page.replace(message.snapshot.text)
                    case "chunk":
                        page.append(message.chunk.text)
                    case "reset":
                        page.replace("")
                    case "reconnect":
                        pause_seconds = message.reconnect.after.ToTimedelta().total_seconds()
                    case "done":
                        page.end()
                        return message.done.story
        except StorymeshError as error:
            failures += 1
            if error.code() is not StatusCode.UNAVAILABLE or failures == _TRIES:
                page.end()
                raise
            pause_seconds = min(_PAUSE_SECONDS * 2**failures, _LONGEST_PAUSE_SECONDS)
        await asyncio.sleep(pause_seconds)


class _Page:
    """The printed text of a story. Printed text cannot be withdrawn, so a replacement begins below a line."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._text = ""

    def replace(self, text: str) -> None:
        if not text.startswith(self._text):
            self._output.write("\n\n---\n\n")
            self._text = ""
        self.append(text[len(self._text) :])

    def append(self, text: str) -> None:
        self._text += text
        self._output.write(plain(text))
        self._output.flush()

    def end(self) -> None:
        if self._text:
            self._output.write("\n")
            self._output.flush()
