"""Watching a story being written: replay, then live, from one cursor, so that there is no seam."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from kit.data.database import Database
from kit.errors import InvalidArgument, Violation
from kit.identity.caller import Caller
from kit.identity.signing import Signer
from services.story.store.progress import Progress, ProgressEntry, ProgressKind, merged

from ..errors import Interrupted, TooManyWatches
from ..model import START, Chunk, Done, Heartbeat, Position, Reconnect, Reset, Snapshot, State, StateChange, Step, Story
from .stories import Stories
from .story_feeds import PASSING, StoryFeed, StoryFeeds

_STANDING = "="
"""Marks the place in the token of a resumption's snapshot.

Whoever comes back with that has read nothing since it came back before, and has only a snapshot: it gets a newer one, so that
a client that reads one message of each stream gets on as well.
"""


_ENDED = "!"
"""Marks the place in the token of a Done, and stands before what that told: the client has read the end."""


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """How much one process gives to watchers."""

    per_person: int
    altogether: int
    stories: int
    """Different stories: each holds a connection to Redis and its text in memory."""
    entries_behind: int
    """Entries that may come while a watcher's client does not read."""


class Watches:
    """Streams a story's steps, each with a token that resumes right after it."""

    def __init__(
        self,
        db: Database,
        stories: Stories,
        progress: Progress,
        signer: Signer,
        limits: WatchLimits,
        *,
        heartbeat_seconds: float,
    ) -> None:
        self._stories = stories
        self._progress = progress
        self._signer = signer
        self._limits = limits
        self._heartbeat_seconds = heartbeat_seconds
        self._feeds = StoryFeeds(db, progress, most=limits.stories)
        self._open: Counter[UUID] = Counter()
        """By person."""

    async def run(self, stopping: asyncio.Event) -> None:
        """Must run while there are watches: it sees what no entry tells, and sends watchers elsewhere when `stopping` is set."""
        await self._feeds.run(stopping)

    async def watch(self, caller: Caller, story_id: UUID, resume_token: str) -> AsyncGenerator[tuple[str, Step], None]:
        """The first step is a Snapshot; ends after Done or Reconnect.

        Raises before the first step InvalidArgument for a foreign token, and TooManyWatches; StoryNotFound at any time.
        """
        scope = _scope(caller, story_id)
        after, standing = self._opened(scope, resume_token)
        watch = _Watch(
            self._stories,
            self._feeds,
            self._progress,
            caller,
            entries_behind=self._limits.entries_behind,
            heartbeat_seconds=self._heartbeat_seconds,
        )
        with self._admitted(caller.user_id):
            async with aclosing(watch.steps(story_id, after, standing=standing)) as steps:
                async for step in steps:
                    yield self._signer.sign(scope, watch.place), step

    async def nothing_is_new(self, caller: Caller, story_id: UUID, resume_token: str) -> bool:
        """Whether a watch from this token would only repeat the Done that the token came with. Raises as `watch` does."""
        _, mark, told = (self._signer.open(_scope(caller, story_id), resume_token) or "").partition(_ENDED)
        return bool(mark) and told == _told_by_done(await self._stories.get(caller, story_id))

    @contextmanager
    def _admitted(self, user_id: UUID) -> Iterator[None]:
        if self._open.total() >= self._limits.altogether or self._open[user_id] >= self._limits.per_person:
            raise TooManyWatches
        self._open[user_id] += 1
        try:
            yield
        finally:
            self._open[user_id] -= 1
            if not self._open[user_id]:
                del self._open[user_id]

    def _opened(self, scope: str, token: str) -> tuple[Position | None, bool]:
        """Where to go on, and whether the client stands there since it came back before."""
        if not token:
            return None, False
        place = self._signer.open(scope, token)
        if place is None:
            description = "is not a token that a watch of this story handed out"
            raise InvalidArgument([Violation("resume_token", description, "RESUME_TOKEN_INVALID")])
        position = place.partition(_ENDED)[0]
        return Position.parse(position.removesuffix(_STANDING)), position.endswith(_STANDING)


def _scope(caller: Caller, story_id: UUID) -> str:
    return f"watch:{caller.user_id}:{story_id}"


def _told_by_done(story: Story) -> str:
    """Differs after each retry, so that whoever comes back then is told of the new attempt."""
    return f"{story.attempt}-{story.state}" if story.state.final else ""


class _Watch:
    """One watcher: what it has been told so far, and how that goes on.

    It keeps a position and no text, and while its client does not read it takes nothing from anybody.
    """

    def __init__(
        self,
        stories: Stories,
        feeds: StoryFeeds,
        progress: Progress,
        caller: Caller,
        *,
        entries_behind: int,
        heartbeat_seconds: float,
    ) -> None:
        self._stories = stories
        self._feeds = feeds
        self._progress = progress
        self._caller = caller
        self._entries_behind = entries_behind
        self._heartbeat_seconds = heartbeat_seconds
        self._state = State.QUEUED
        self._told: State | None = None
        """What the client knows for certain: after a resumption nothing."""
        self._blank = True
        self._whole = False
        """It has been told the text of the final story."""
        self._standing = False
        self._end = ""
        self.position = START

    @property
    def place(self) -> str:
        """What a token says of where the latest step leads."""
        return f"{self.position}{_STANDING if self._standing else ''}{self._end}"

    async def steps(self, story_id: UUID, after: Position | None, *, standing: bool) -> AsyncGenerator[Step, None]:
        story = await self._stories.get(self._caller, story_id)
        if story.state.final and after is None:
            # Needs no Redis: what is finished can be read while that is away.
            yield Snapshot(story.text)
            yield self._done(story)
            return
        self._state = story.state
        async with self._feeds.follow(story) as feed:
            self._standing = after is not None
            yield await self._beginning(feed, None if standing else after)
            self._standing = False
            try:
                if after is None and not story.state.final:
                    # Only on a fresh watch: a client that comes back at every message must get on.
                    self._told = story.state
                    yield StateChange(story.state)
                async with aclosing(self._live(feed)) as live:
                    async for step in live:
                        yield step
            except (Interrupted, *PASSING):
                # The client has a part already; it resumes here or at another replica, and nothing is lost.
                yield _reconnect()

    async def _beginning(self, feed: StoryFeed, after: Position | None) -> Snapshot:
        """The text up to the position, or up to now when there is none or its place is lost."""
        story = feed.story
        if story.state.final and (after is None or after >= feed.head):
            self.position, self._whole = feed.head, True
            return Snapshot(story.text)
        text = None if after is None else await feed.text_at(after)
        if after is None or text is None:
            return self._snapshot_of_now(feed)
        self.position, self._blank = after, not text
        return Snapshot(text)

    def _snapshot_of_now(self, feed: StoryFeed) -> Snapshot:
        self.position, self._blank = feed.head, not feed.text
        return Snapshot(feed.text)

    async def _live(self, feed: StoryFeed) -> AsyncGenerator[Step, None]:
        clock = asyncio.get_running_loop().time
        told_at = clock()
        while not feed.leaving:
            news, taken = feed.news, feed.count
            entries = feed.after(self.position)
            if entries is None:
                entries = await self._progress.read(feed.story.id, self.position)
                if not entries:
                    # Redis has lost what memory has left behind.
                    yield self._snapshot_of_now(feed)
            for step in self._steps_of(entries):
                yield step
                told_at = clock()
            if feed.count - taken > self._entries_behind:
                # Its client reads more slowly than words are written, and would for ever show what is long past.
                break
            if entries:
                continue
            story = feed.story
            feed.check()
            if story.state.final and self.position >= feed.head:
                if not self._whole and feed.text != story.text:
                    yield Snapshot(story.text)
                yield self._done(story)
                return
            if not story.state.final and story.state is not self._state:
                self._state = self._told = story.state
                yield StateChange(story.state)
                told_at = clock()
                continue
            try:
                async with asyncio.timeout_at(told_at + self._heartbeat_seconds):
                    await news.wait()
            except TimeoutError:
                yield Heartbeat()
                told_at = clock()
        yield _reconnect()

    def _done(self, story: Story) -> Done:
        self._end = f"{_ENDED}{_told_by_done(story)}"
        return Done(story)

    def _steps_of(self, entries: Sequence[ProgressEntry]) -> Iterator[Step]:
        """Chunks that came together are told together."""
        for entry in merged(entries):
            self.position = entry.position
            if entry.begins:
                self._state = State.RUNNING
                if self._told is not State.RUNNING:
                    self._told = State.RUNNING
                    yield StateChange(State.RUNNING)
            match entry.kind:
                case ProgressKind.BEGIN:
                    if not self._blank or entry.position.attempt > 1:
                        yield Reset(entry.position.attempt)
                    self._blank = True
                case ProgressKind.CHUNK:
                    self._blank = False
                    yield Chunk(entry.text)
                case ProgressKind.SNAPSHOT:
                    self._blank = not entry.text
                    yield Snapshot(entry.text)
                case ProgressKind.END:
                    continue


def _reconnect() -> Reconnect:
    """Spread out, so that the watchers of a leaving replica do not all arrive elsewhere in the same instant."""
    return Reconnect(timedelta(seconds=random.uniform(0.5, 1.5)))  # noqa: S311  # spreads load
