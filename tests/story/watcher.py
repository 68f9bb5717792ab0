"""A client that watches a story and keeps the text as the contract says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from storymesh.story.v1 import story_service_pb2 as pb

from tests.story.conftest import Person


class Watcher:
    """Reads steps one by one. `text` is the snapshot and what came after it, starting over at a reset."""

    def __init__(self, messages: AsyncIterator[pb.WatchStoryResponse]) -> None:
        self._messages = messages
        self.text = ""
        self.seen: list[str] = []
        self.last = pb.WatchStoryResponse()

    async def step(self) -> str:
        """The name of the next step."""
        message = await anext(self._messages)
        kind = message.WhichOneof("event") or ""
        if kind == "snapshot":
            self.text = message.snapshot.text
        elif kind == "chunk":
            self.text += message.chunk.text
        elif kind == "reset":
            self.text = ""
        self.seen.append(kind)
        self.last = message
        return kind

    async def until(self, *kinds: str) -> pb.WatchStoryResponse:
        """Reads up to and including a step of these kinds."""
        while await self.step() not in kinds:
            pass
        return self.last

    async def until_text(self, text: str) -> None:
        while self.text != text:
            await self.step()


@asynccontextmanager
async def watching(person: Person, story_id: str, resume_token: str = "") -> AsyncIterator[Watcher]:
    """A deadline of 20 s turns a stream that never comes into a failure instead of a hang."""
    call = person.stub.WatchStory(
        pb.WatchStoryRequest(story_id=story_id, resume_token=resume_token), metadata=person.auth, timeout=20
    )
    try:
        yield Watcher(aiter(call))
    finally:
        call.cancel()
