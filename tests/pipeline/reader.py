"""A client that watches one story to its end, and calls again when a call breaks."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from uuid import UUID

from kit.errors import Unavailable
from services.story.model import Chunk, Done, Reconnect, Reset, Snapshot, Story
from services.story.operations.watching import Watches

from .processes import caller

_PAUSE_SECONDS = 0.05


class Reader:
    """Builds the text as the contract says: a snapshot and the chunks after it, starting over at a reset."""

    def __init__(self, watches: Watches, owner_id: UUID, story_id: UUID, *, messages_a_call: int) -> None:
        """Ends each call after `messages_a_call` messages and resumes with its token; 0 means never."""
        self._watches = watches
        self._owner_id = owner_id
        self.story_id = story_id
        self._messages_a_call = messages_a_call
        self._token = ""
        self.text = ""
        self.log: list[str] = []
        self.ended = False
        self.began = asyncio.Event()
        """Set with the first words."""

    async def read(self) -> Story:
        """Watches to the end, and returns the story of the last message."""
        while (done := await self._call()) is None:  # noqa: ASYNC110  # calls again
            await asyncio.sleep(_PAUSE_SECONDS)
        self.ended = True
        return done.story

    async def _call(self) -> Done | None:
        messages = 0
        try:
            steps = self._watches.watch(caller(self._owner_id), self.story_id, self._token)
            async with aclosing(steps):
                async for token, step in steps:
                    self._token = token
                    match step:
                        case Snapshot(text):
                            self.text = text
                        case Reset():
                            self.text = ""
                        case Chunk(text):
                            self.text += text
                        case Done() | Reconnect():
                            self._note(type(step).__name__, "")
                            return step if isinstance(step, Done) else None
                    self._note(type(step).__name__, getattr(step, "text", ""))
                    if self.text:
                        self.began.set()
                    messages += 1
                    if messages == self._messages_a_call:
                        return None
        except Unavailable as error:
            # Redis was away, or has lost the position of the token.
            self._note(type(error).__name__, str(error))
        return None

    def _note(self, what: str, text: str) -> None:
        self.log.append(f"{what} {text[:20]!r}{len(text)}" if text else what)
