"""A client that watches a story and builds its text by the rules of the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from storymesh.story.v1 import story_service_pb2 as pb

from tests.story.conftest import Person


class Watcher:
    """Reads steps one by one. `text` is the latest snapshot and the chunks after it; a reset empties it."""

    def __init__(self, messages: AsyncIterator[pb.WatchStoryResponse]) -> None:
        self._messages = messages
        self.text = ""
        self.seen: list[str] = []
        self.last = pb.WatchStoryResponse()

    async def step(self) -> str:
        """Read a step and return its name."""
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
        """Read up to and including a step of these kinds."""
        while await self.step() not in kinds:
            pass
        return self.last

    async def until_text(self, text: str) -> None:
        while self.text != text:
            await self.step()


@asynccontextmanager
async def watching(person: Person, story_id: str, resume_token: str = "") -> AsyncIterator[Watcher]:
    """Open a watch during the block, with a deadline of 20 s so that a missing message fails the test instead of blocking it."""
    call = person.stub.WatchStory(
        pb.WatchStoryRequest(story_id=story_id, resume_token=resume_token), metadata=person.auth, timeout=20
    )
    try:
        yield Watcher(aiter(call))
    finally:
        call.cancel()
