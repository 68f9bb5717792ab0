"""Fan-out: one listener per process wakes the watches of the files that have changed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from kit.data.notify import hear

from ..store.files import CHANNEL


class FileFeed:
    """What the watches of one file share."""

    def __init__(self) -> None:
        self.leaving = False
        """True while the server drains."""
        self.news = asyncio.Event()
        """Set once, at the next change of the file or of an attribute, and replaced by a new event."""
        self.watchers = 0

    def tell(self) -> None:
        news, self.news = self.news, asyncio.Event()
        news.set()


class FileFeeds:
    """The feeds of all files that are watched at this process."""

    def __init__(self, *, database_url: str) -> None:
        self._database_url = database_url
        self._feeds: dict[UUID, FileFeed] = {}
        self._leaving = False

    @contextmanager
    def follow(self, file_id: UUID) -> Iterator[FileFeed]:
        """Share the file's feed during the block."""
        feed = self._feeds.setdefault(file_id, FileFeed())
        feed.watchers += 1
        feed.leaving = self._leaving
        try:
            yield feed
        finally:
            feed.watchers -= 1
            if not feed.watchers:
                del self._feeds[file_id]

    async def run(self, stopping: asyncio.Event) -> None:
        """Listen for changes until `stopping` is set; then send every watcher to another replica."""
        hearing = asyncio.create_task(hear(self._database_url, CHANNEL, self._heard))
        try:
            await stopping.wait()
        finally:
            self._leaving = True
            for feed in self._feeds.values():
                feed.leaving = True
                feed.tell()
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)

    def _heard(self, payload: str | None) -> None:
        """Take a message of the channel; None after a (re)connect, before which messages may have been missed."""
        if payload is None:
            woken = [*self._feeds.values()]
        else:
            found = self._feeds.get(UUID(payload))
            woken = [found] if found else []
        for feed in woken:
            feed.tell()
