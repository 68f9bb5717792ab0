"""Watches: server streams that replay a story's progress and then follow it live.

One cursor serves both parts, so that nothing is lost or repeated between them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from uuid import UUID

from kit.data.database import Database
from kit.errors import InvalidArgument, Violation
from kit.identity.caller import Caller
from kit.identity.signing import Signer
from kit.rpc.watch_leases import WatchLeases
from kit.rpc.watches import OpenWatches, reconnect_after
from services.story.store.progress import Progress, ProgressEntry, ProgressKind, merged

from ..errors import Interrupted
from ..model import START, Chunk, Done, Heartbeat, Position, Reconnect, Reset, Snapshot, State, StateChange, Step, Story
from .stories import Stories
from .story_feeds import PASSING, StoryFeed, StoryFeeds

_STANDING = "="
"""Suffix of the position in the token of a resumed watch's first snapshot.

A client that resumes with such a token has read only that snapshot since it last resumed. It gets a snapshot of the present text,
so that a client that reads one message of each stream still makes progress.
"""


_ENDED = "!"
"""Separates the position from the final state in the token of a Done: the client has read the end."""


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """Limits on the watches of one process."""

    per_person: int
    altogether: int
    stories: int
    """Distinct watched stories; each holds a connection to Redis and its text in memory."""
    entries_behind: int
    """Entries that may arrive while a watcher's client does not read."""


class Watches:
    """Streams a story's steps, each with a token that resumes the watch right after it."""

    def __init__(
        self,
        db: Database,
        stories: Stories,
        progress: Progress,
        signer: Signer,
        limits: WatchLimits,
        *,
        heartbeat_seconds: float,
        leases: WatchLeases | None = None,
    ) -> None:
        self._stories = stories
        self._progress = progress
        self._signer = signer
        self._limits = limits
        self._heartbeat_seconds = heartbeat_seconds
        self._feeds = StoryFeeds(db, progress, most=limits.stories)
        self._open = OpenWatches(per_person=limits.per_person, altogether=limits.altogether, leases=leases)

    async def run(self, stopping: asyncio.Event) -> None:
        """Poll the states of watched stories; when `stopping` is set, send watchers to other replicas. Must run beside watches."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._feeds.run(stopping))
            group.create_task(self._open.run(stopping))

    async def watch(self, caller: Caller, story_id: UUID, resume_token: str) -> AsyncGenerator[tuple[str, Step], None]:
        """Yield resume tokens and steps. The first step is a Snapshot; the stream ends after Done or Reconnect.

        Raises InvalidArgument for a token of another watch and TooManyWatches, both before the first step, and StoryNotFound at any
        time.
        """
        scope = _scope(caller, story_id)
        after, standing = self._opened(scope, resume_token)
        watch = _Watch(
            self._stories,
            self._feeds,
            self._progress,
            caller,
            lease=self._open.leased(caller.user_id),
            entries_behind=self._limits.entries_behind,
            heartbeat_seconds=self._heartbeat_seconds,
        )
        steps_after = watch.steps(story_id, after, standing=standing)
        async with self._open.counted_here(caller.user_id), aclosing(steps_after) as steps:
            async for step in steps:
                yield self._signer.sign(scope, watch.place), step

    async def nothing_is_new(self, caller: Caller, story_id: UUID, resume_token: str) -> bool:
        """True if the token came with the Done of the present final state, so that a watch could only repeat it.

        Raises StoryNotFound.
        """
        _, mark, told = (self._signer.open(_scope(caller, story_id), resume_token) or "").partition(_ENDED)
        return bool(mark) and told == _told_by_done(await self._stories.get(caller, story_id))

    def _opened(self, scope: str, token: str) -> tuple[Position | None, bool]:
        """Return the position to resume from (None: a fresh watch), and whether the token carries _STANDING.

        Raises InvalidArgument.
        """
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
    """Return attempt and final state, or "" without one. It differs after a retry, so an older token gets the new attempt."""
    return f"{story.attempt}-{story.state}" if story.state.final else ""


class _Watch:
    """One watcher: its position in the progress and what its client has been told.

    It keeps no text. It is pulled by its client (back-pressure), so a client that does not read costs nothing.
    """

    def __init__(
        self,
        stories: Stories,
        feeds: StoryFeeds,
        progress: Progress,
        caller: Caller,
        *,
        lease: AbstractAsyncContextManager[None],
        entries_behind: int,
        heartbeat_seconds: float,
    ) -> None:
        """`lease` counts the watch at all replicas. It is entered when it is known that the story is not told at once."""
        self._stories = stories
        self._feeds = feeds
        self._progress = progress
        self._caller = caller
        self._lease = lease
        self._entries_behind = entries_behind
        self._heartbeat_seconds = heartbeat_seconds
        self._state = State.QUEUED
        self._told: State | None = None
        """The state that this stream has sent; None right after a resumption."""
        self._blank = True
        self._whole = False
        """True once the client has been sent the text of the final story."""
        self._standing = False
        self._end = ""
        self.position = START

    @property
    def place(self) -> str:
        """The content of the token that resumes after the latest step."""
        return f"{self.position}{_STANDING if self._standing else ''}{self._end}"

    async def steps(self, story_id: UUID, after: Position | None, *, standing: bool) -> AsyncGenerator[Step, None]:
        story = await self._stories.get(self._caller, story_id)
        if story.state.final and after is None:
            # Served from Postgres alone, so that finished stories can be watched while Redis does not answer; and without a lease,
            # which would cost more than all of this.
            yield Snapshot(story.text)
            yield self._done(story)
            return
        self._state = story.state
        async with self._lease, self._feeds.follow(story) as feed:
            self._standing = after is not None
            yield await self._beginning(feed, None if standing else after)
            self._standing = False
            try:
                if after is None and not story.state.final:
                    # Only on a fresh watch: a client that resumes after each message would otherwise get nothing else.
                    self._told = story.state
                    yield StateChange(story.state)
                async with aclosing(self._live(feed)) as live:
                    async for step in live:
                        yield step
            except (Interrupted, *PASSING):
                # No error after the first step: the client resumes here or at another replica, without loss.
                yield Reconnect(reconnect_after())

    async def _beginning(self, feed: StoryFeed, after: Position | None) -> Snapshot:
        """Return the text up to `after`, or the present text without `after` or when the entries there are lost."""
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
                    # Redis has lost the entries that memory has dropped.
                    yield self._snapshot_of_now(feed)
            for step in self._steps_of(entries):
                yield step
                told_at = clock()
            if feed.count - taken > self._entries_behind:
                # The client reads more slowly than the writer writes, so it would fall behind without end: send it Reconnect.
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
        yield Reconnect(reconnect_after())

    def _done(self, story: Story) -> Done:
        self._end = f"{_ENDED}{_told_by_done(story)}"
        return Done(story)

    def _steps_of(self, entries: Sequence[ProgressEntry]) -> Iterator[Step]:
        """Translate entries into steps, and move the position. Chunks that follow each other become one Chunk."""
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
