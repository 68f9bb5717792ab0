"""Fan-out: one Redis reader per story that is watched, however many watch it.

The reader keeps the text so far and the latest entries in memory. A watcher is a position over them, so it costs next to nothing
and cannot hold up the reader or other watchers; one that is further behind than memory reaches reads its part from Redis.
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
from kit.runtime.loops import every

from .. import store
from ..errors import Interrupted, StoryNotFound, TooManyWatches
from ..model import START, Position, State, Story
from ..store.progress import Progress, ProgressEntry, ProgressKind, fold

log = logging.getLogger(__name__)

_WAIT_SECONDS = 2.0
"""Of one blocking read: less than the time after which the connection is taken for dead."""

_LOOK_SECONDS = 1.0
"""How often the database is asked for the states of all stories that are watched, in one query.

A worker may have died between its commit and its last entry, and not every change of state comes with an entry.
"""

_TAIL_ENTRIES = 256
_TAIL_CHARACTERS = 64 * 1024

PASSING = (redis.exceptions.RedisError, *DATABASE_AWAY)
"""What a story may soon be followed again after, here or at another replica."""


class StoryFeed:
    """The reader of one story, which its watchers share."""

    def __init__(self, db: Database, progress: Progress, story: Story) -> None:
        self._db = db
        self._progress = progress
        self._refreshing = asyncio.Lock()
        self._caught_up = False
        # What is before the tail, and the tail: the text at `head` is always the base's text with the tail folded in.
        self._base = START
        self._base_text = ""
        self._tail: deque[ProgressEntry] = deque()
        self._tail_characters = 0
        self.story = story
        """As last heard of. When it is final, `text` and `head` are, too."""
        self.text = ""
        self.head = START
        self.count = 0
        """Entries taken so far: what a watcher falls behind by is counted with it."""
        self.failure: Exception | None = None
        """Why the story is not followed any more."""
        self.leaving = False
        """The server is about to leave."""
        self.news = asyncio.Event()
        """Set at the next change of anything above; then another one takes its place."""
        self.watchers = 0

    async def ready(self) -> None:
        """Waits until all that was written before is known. Raises what kept that from happening."""
        while not self._caught_up:
            self.check()
            await self.news.wait()

    def check(self) -> None:
        """Raises why the story is not followed any more: StoryNotFound, Interrupted, or RuntimeError for what nobody foresaw."""
        match self.failure:
            case None:
                return
            case StoryNotFound():
                raise StoryNotFound
            # An error of each watcher's own: one that all raised would collect the traces of all.
            case _ if isinstance(self.failure, PASSING):
                raise Interrupted from self.failure
            case _:
                raise RuntimeError("a story cannot be followed") from self.failure

    def after(self, position: Position) -> list[ProgressEntry] | None:
        """What was written after the position, oldest first. None when memory does not reach back so far."""
        if position < self._base:
            return None
        newer: list[ProgressEntry] = []
        for entry in reversed(self._tail):
            # From the end, where nearly every watcher is.
            if entry.position <= position:
                break
            newer.append(entry)
        newer.reverse()
        return newer

    async def text_at(self, position: Position) -> str | None:
        """The text up to the position. None when there is no such place any more. Raises RedisError."""
        if position > self.head:
            # Another replica was quicker to read what its watcher shows here.
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
        """Reads on until the story is final or there is a failure, which watchers find in `failure`."""
        try:
            await self._catch_up()
            if self.head == START:
                # Redis has lost it all, or nothing is written. What the writer appends next will repeat the whole text.
                self.text = self._base_text = self.story.text
            self._caught_up = True
            self._tell()
            while not self.story.state.final:
                entries = await self._progress.wait(self.story.id, self.head, _WAIT_SECONDS)
                if entries and entries[-1].kind is ProgressKind.END:
                    # First, so that whoever is told of the end finds out at once which one it is.
                    await self.refresh()
                elif entries and any(entry.begins for entry in entries) and not self.story.state.final:
                    self.story = replace(self.story, state=State.RUNNING)
                self._take(entries)
        except Exception as error:
            # Nothing may escape: it would be nobody's, and the watchers would wait for ever.
            self.fail(error)

    async def refresh(self) -> None:
        """Asks for the story anew. Raises StoryNotFound when it is gone, RedisError, and what the database raises."""
        async with self._refreshing:
            async with self._db.single() as tx:
                story = await store.stories.find(tx, self.story.id)
            if story is None:
                raise StoryNotFound
            if story.state.final:
                # What was written was so before the story became final; it is not final here before all of it is known.
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
        while entries := await self._progress.read(self.story.id, self.head):
            self._take(entries)

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
                # Two reads may overlap; each is without a gap, so what is new in the second follows what the first has brought.
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
    """The stories that are watched at this replica."""

    def __init__(self, db: Database, progress: Progress, *, most: int) -> None:
        self._db = db
        self._progress = progress
        self._most = most
        self._feeds: dict[UUID, tuple[StoryFeed, asyncio.Task[None]]] = {}
        self._leaving = False

    @asynccontextmanager
    async def follow(self, story: Story) -> AsyncIterator[StoryFeed]:
        """Follows the story, as it was just found, together with whoever does so already.

        The first to come starts the reader, the last to go ends it. Raises TooManyWatches, and RedisError when it cannot begin.
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
                # Not left behind: the cancelled read has a connection to give back.
                await asyncio.gather(reading, return_exceptions=True)

    async def run(self, stopping: asyncio.Event) -> None:
        """Looks after the states of all that is followed until `stopping` is set; then tells every watcher."""
        # Entries still come when a look fails, and the next one makes up for it.
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
        """Has watchers told of what happened to their stories without an entry."""
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
        # Without waiting anywhere: whoever joins is counted before the last one can go.
        joined = self._feeds.get(story.id)
        if joined:
            feed, _ = joined
            # A reader that has failed is of no use any more, nor is one that read to the end of a story that is retried now.
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
