"""A writer whose every word the test decides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from services.story.adapters.writers import Brief, Piece, Title, Usage, Words


class ScriptedWriter:
    """Yields what is put into it, or raises it; `End` ends the story.

    `briefs` records what was asked for; `begun` is set at each beginning.
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
        """A whole story."""
        self.put(Title(title), *map(Words, words), Usage(7, len(words)), self.End())

    def release(self) -> None:
        """Lets every story end, so that workers can stop."""
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
