"""A writer that yields what the test puts into it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from services.story.adapters.writers import Brief, Piece, Title, Usage, Words


class ScriptedWriter:
    """Yields each piece put into it, or raises it if it is an exception; `End` ends the story.

    `briefs` records the requests; `begun` is set at the beginning of each story.
    """

    name = "scripted"
    model = "scripted-1"

    class End:
        pass

    def __init__(self, *script: Piece | Exception | End) -> None:
        self.briefs: list[Brief] = []
        self.begun = asyncio.Event()
        self._script: asyncio.Queue[Piece | Exception | ScriptedWriter.End] = asyncio.Queue()
        self._released = False
        self.put(*script)

    def put(self, *script: Piece | Exception | End) -> None:
        for item in script:
            self._script.put_nowait(item)

    def tell(self, title: str, *words: str) -> None:
        """Put a whole story."""
        self.put(Title(title), *map(Words, words), Usage(7, len(words)), self.End())

    def release(self) -> None:
        """End every story, so that workers can stop."""
        self._released = True
        self.put(*[self.End()] * 100)

    async def warm_up(self) -> None:
        return

    async def write(self, brief: Brief) -> AsyncGenerator[Piece, None]:
        self.briefs.append(brief)
        self.begun.set()
        while True:
            item = await self._script.get()
            if isinstance(item, Exception):
                raise item
            if isinstance(item, ScriptedWriter.End):
                return
            yield item

    async def aclose(self) -> None:
        return
