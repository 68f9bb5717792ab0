"""Fan-out: one Redis reader per watched story serves all its watchers in this process.

The reader keeps the text so far and the latest entries in memory. A watcher is a position in them, so it costs little and cannot
block the reader or other watchers. A watcher that is behind the entries in memory reads the missing ones from Redis.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from uuid import UUID

import redis.exceptions

from kit.data.database import DATABASE_AWAY, Database
from kit.rpc.watches import TooManyWatches
from kit.runtime.loops import every

from .. import store
from ..errors import Interrupted, StoryNotFound
from ..model import START, Position, State, Story
from ..store.progress import PAGE, Progress, ProgressEntry, ProgressKind, fold

log = logging.getLogger(__name__)

_WAIT_SECONDS = 2.0
"""The longest wait of one blocking read; shorter than the socket timeout of the Redis connection."""

_LOOK_SECONDS = 1.0
"""The interval at which one query polls the states of all watched stories.

Polling is needed because a worker may die between its commit and its last entry, and some changes of state have no entry.
"""

_TAIL_ENTRIES = 256
_TAIL_CHARACTERS = 64 * 1024

PASSING = (redis.exceptions.RedisError, *DATABASE_AWAY)
"""Transient failures of Redis or the database, after which a watcher may reconnect to this or another replica."""


class StoryFeed:
    """The reader of one story, which its watchers share."""

    def __init__(self, db: Database, progress: Progress, story: Story) -> None:
        self._db = db
        self._progress = progress
        self._refreshing = asyncio.Lock()
        self._caught_up = False
        # The tail holds the latest entries, the base the position and text before them. Invariant: folding the tail into the
        # base's text gives the text at `head`.
        self._base = START
        self._base_text = ""
        self._tail: deque[ProgressEntry] = deque()
        self._tail_characters = 0
        self.story = story
        """The latest known story. When its state is final, `text` and `head` are final too."""
        self.text = ""
        self.head = START
        self.count = 0
        """Entries taken so far; the difference between two counts tells how far a watcher has fallen behind."""
        self.failure: Exception | None = None
        """The error that has ended the reader."""
        self.leaving = False
        """True while the server drains."""
        self.news = asyncio.Event()
        """Set once, at the next change of an attribute above, and replaced by a new event."""
        self.watchers = 0

    async def ready(self) -> None:
        """Wait until all earlier entries are read. Raises as `check` does."""
        while not self._caught_up:
            self.check()
            await self.news.wait()

    def check(self) -> None:
        """Raise the reader's failure: StoryNotFound, Interrupted for a transient one, RuntimeError for an unexpected one."""
        match self.failure:
            case None:
                return
            case StoryNotFound():
                raise StoryNotFound
            # A new exception per watcher: a shared one would collect the tracebacks of all watchers.
            case _ if isinstance(self.failure, PASSING):
                raise Interrupted from self.failure
            case _:
                raise RuntimeError("a story cannot be followed") from self.failure

    def after(self, position: Position) -> list[ProgressEntry] | None:
        """Return the entries after the position, oldest first. None when the position is before the entries in memory."""
        if position < self._base:
            return None
        newer: list[ProgressEntry] = []
        for entry in reversed(self._tail):
            # Searched from the end, because nearly every watcher is there.
            if entry.position <= position:
                break
            newer.append(entry)
        newer.reverse()
        return newer

    async def text_at(self, position: Position) -> str | None:
        """Return the text up to the position. None when the entries there are lost. Raises RedisError."""
        if position > self.head:
            # The resume token comes from another replica, which has read further.
            await self._catch_up()
        if position < self._base:
            return await self._replayed(position)
        text, place = self._base_text, self._base
        for entry in self._tail:
            if place == position:
                break
            text, place = fold(text, entry), entry.position
        return text if place == position else None

    async def read(self) -> None:
        """Read entries until the story is final or an error occurs, which goes into `failure`."""
        try:
            await self._catch_up()
            if self.head == START:
                # The stream is empty: lost, or nothing is written yet. After a loss the writer's next entry is a snapshot.
                self.text = self._base_text = self.story.text
            self._caught_up = True
            self._tell()
            while not self.story.state.final:
                entries = await self._progress.wait(self.story.id, self.head, _WAIT_SECONDS)
                if entries and entries[-1].kind is ProgressKind.END:
                    # Read the story before taking END, so that watchers see the END together with the final state.
                    await self.refresh()
                elif entries and any(entry.begins for entry in entries) and not self.story.state.final:
                    self.story = replace(self.story, state=State.RUNNING)
                self._take(entries)
        except Exception as error:
            # Catch everything: an exception that only ended this task would leave the watchers waiting for ever.
            self.fail(error)

    async def refresh(self) -> None:
        """Read the story from the database again. Raises StoryNotFound when it is deleted, RedisError and DatabaseError."""
        async with self._refreshing:
            async with self._db.single() as tx:
                story = await store.stories.find(tx, self.story.id)
            if story is None:
                raise StoryNotFound
            if story.state.final:
                # All entries precede the final state, so they are read before `self.story` becomes final.
                await self._catch_up()
            self.story = story
            self._tell()

    def fail(self, error: Exception) -> None:
        if self.failure is None:
            self.failure = error
            self._tell()
            if not isinstance(error, StoryNotFound):
                log.warning("story %s cannot be followed any more: %r", self.story.id, error)

    def leave(self) -> None:
        self.leaving = True
        self._tell()

    async def _catch_up(self) -> None:
        while True:
            entries = await self._progress.read(self.story.id, self.head)
            self._take(entries)
            if len(entries) < PAGE:
                return

    async def _replayed(self, position: Position) -> str | None:
        text, place = "", START
        while place < position:
            entries = await self._progress.read(self.story.id, place)
            for entry in entries:
                if place < position:
                    text, place = fold(text, entry), entry.position
            if not entries:
                break
        return text if place == position else None

    def _take(self, entries: Sequence[ProgressEntry]) -> None:
        for entry in entries:
            if entry.position <= self.head:
                # Two concurrent reads may overlap. Neither has gaps, so skipping known entries leaves none.
                continue
            self.text, self.head = fold(self.text, entry), entry.position
            self.count += 1
            self._tail.append(entry)
            self._tail_characters += len(entry.text)
        while len(self._tail) > _TAIL_ENTRIES or self._tail_characters > _TAIL_CHARACTERS:
            dropped = self._tail.popleft()
            self._tail_characters -= len(dropped.text)
            self._base_text, self._base = fold(self._base_text, dropped), dropped.position
        if entries:
            self._tell()

    def _tell(self) -> None:
        news, self.news = self.news, asyncio.Event()
        news.set()


class StoryFeeds:
    """The feeds of all stories that are watched in this process."""

    def __init__(self, db: Database, progress: Progress, *, most: int) -> None:
        self._db = db
        self._progress = progress
        self._most = most
        self._feeds: dict[UUID, tuple[StoryFeed, asyncio.Task[None]]] = {}
        self._leaving = False

    @asynccontextmanager
    async def follow(self, story: Story) -> AsyncIterator[StoryFeed]:
        """Share the story's feed during the block; `story` is as just read from the database.

        The first watcher starts the reader, the last one ends it. Raises TooManyWatches, StoryNotFound, and Interrupted, RedisError
        or DatabaseError when the earlier entries or the story cannot be read.
        """
        feed, reading = self._joined(story)
        feed.watchers += 1
        try:
            await feed.ready()
            if (feed.story.state, feed.story.attempt) != (story.state, story.attempt):
                await feed.refresh()
            yield feed
        finally:
            feed.watchers -= 1
            if not feed.watchers:
                self._forget(feed)
                reading.cancel()
                # Wait for the cancelled reader, so that its Redis connection is back in the pool.
                await asyncio.gather(reading, return_exceptions=True)

    async def run(self, stopping: asyncio.Event) -> None:
        """Poll the states of watched stories until `stopping` is set; then send every watcher to another replica."""
        # A failed poll is only logged: entries still arrive, and the next poll finds what this one missed.
        failure = "the states of watched stories cannot be looked at now"
        looking = asyncio.create_task(every(_LOOK_SECONDS, stopping, self.look, failure=failure, at_once=False))
        try:
            await stopping.wait()
        finally:
            self._leaving = True
            for feed, _ in self._feeds.values():
                feed.leave()
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    async def look(self) -> None:
        """Refresh each watched story whose state in the database differs from the known one."""
        known = {story_id: feed for story_id, (feed, _) in self._feeds.items()}
        if not known:
            return
        async with self._db.single() as tx:
            states = await store.stories.states(tx, known)
        for story_id, feed in known.items():
            if not feed.failure and states.get(story_id) is not feed.story.state:
                try:
                    await feed.refresh()
                except Exception as error:
                    feed.fail(error)

    def _joined(self, story: Story) -> tuple[StoryFeed, asyncio.Task[None]]:
        # No await between here and the increment of `watchers`: otherwise the last watcher could end the feed that another joins.
        joined = self._feeds.get(story.id)
        if joined:
            feed, _ = joined
            # Not reused: a reader that has failed, and one that has ended with the final state of a story that is retried now.
            if not feed.failure and (story.state.final or not feed.story.state.final):
                return joined
        elif len(self._feeds) >= self._most:
            raise TooManyWatches
        feed = StoryFeed(self._db, self._progress, story)
        if self._leaving:
            feed.leave()
        reading = asyncio.create_task(feed.read())
        self._feeds[story.id] = feed, reading
        return feed, reading

    def _forget(self, feed: StoryFeed) -> None:
        kept = self._feeds.get(feed.story.id)
        if kept and kept[0] is feed:
            del self._feeds[feed.story.id]
