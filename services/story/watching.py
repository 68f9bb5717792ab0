"""Watching a story being written: replay, then live, from one cursor, so that there is no seam."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import timedelta
from uuid import UUID

import redis.exceptions
import sqlalchemy.exc

from services.kit.caller import Caller
from services.kit.errors import InvalidArgument, Violation
from services.kit.signing import Signer

from .model import START, Chunk, Done, Heartbeat, Position, Reconnect, Reset, Snapshot, State, StateChange, Step, Story
from .progress import Entry, Kind, Progress, fold
from .stories import Stories

_LOOK_SECONDS = 3.0
"""After this much silence the database is asked: a worker may have died between its commit and its last entry."""

_PASSING = (redis.exceptions.RedisError, sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError, OSError)


class Watches:
    """Streams a story's steps, each with a token that resumes right after it."""

    def __init__(
        self,
        stories: Stories,
        progress: Progress,
        signer: Signer,
        stopping: asyncio.Event,
        *,
        heartbeat_seconds: float,
    ) -> None:
        self._stories = stories
        self._progress = progress
        self._signer = signer
        self._stopping = stopping
        self._heartbeat_seconds = heartbeat_seconds

    async def watch(self, caller: Caller, story_id: UUID, resume_token: str) -> AsyncGenerator[tuple[str, Step], None]:
        """The first step is a Snapshot; ends after Done or Reconnect.

        Raises StoryNotFound, and InvalidArgument for a foreign token, before the first step.
        """
        scope = f"watch:{caller.user_id}:{story_id}"
        after = self._opened(scope, resume_token)
        watch = _Watch(self._stories, self._progress, self._stopping, self._heartbeat_seconds, caller)
        async with aclosing(watch.steps(story_id, after)) as steps:
            async for step in steps:
                yield self._signer.sign(scope, str(watch.position)), step

    def _opened(self, scope: str, token: str) -> Position | None:
        if not token:
            return None
        position = self._signer.open(scope, token)
        if position is None:
            description = "is not a token that a watch of this story handed out"
            raise InvalidArgument([Violation("resume_token", description, "RESUME_TOKEN_INVALID")])
        return Position.parse(position)


class _Watch:
    """One watcher: what it has been told so far, and how that goes on."""

    def __init__(
        self, stories: Stories, progress: Progress, stopping: asyncio.Event, heartbeat_seconds: float, caller: Caller
    ) -> None:
        self._stories = stories
        self._progress = progress
        self._stopping = stopping
        self._heartbeat_seconds = heartbeat_seconds
        self._caller = caller
        self._text = ""
        self.position = START

    async def steps(self, story_id: UUID, after: Position | None) -> AsyncGenerator[Step, None]:
        story = await self._stories.get(self._caller, story_id)
        if story.state.final and after is None:
            # Needs no Redis: what is finished can be read while that is away.
            yield Snapshot(story.text)
            yield Done(story)
            return
        await self._replay(story_id, after)
        yield Snapshot(self._text)
        try:
            if after is None:
                # Only on a fresh watch: a client that comes back at every message must get on.
                yield StateChange(story.state)
            async with aclosing(self._live(story)) as live:
                async for step in live:
                    yield step
        except _PASSING:
            # The client has a part already; it resumes here or at another replica, and nothing is lost.
            yield _reconnect()

    async def _replay(self, story_id: UUID, after: Position | None) -> None:
        """Rebuilds the text up to the position, or up to now when there is none or its place is lost."""
        reached: tuple[str, Position] | None = ("", START) if after == START else None
        text, position = "", START
        while entries := await self._progress.read(story_id, position):
            for entry in entries:
                text, position = fold(text, entry), entry.position
                if position == after:
                    reached = (text, position)
        self._text, self.position = reached or (text, position)

    async def _live(self, story: Story) -> AsyncGenerator[Step, None]:
        silent = 0.0
        while True:
            if story.state.final:
                # What a resumed watcher has not read yet, without waiting.
                entries: list[Entry] | None = await self._progress.read(story.id, self.position)
            else:
                entries = await self._wait(story.id, min(_LOOK_SECONDS, self._heartbeat_seconds))
            if entries is None:
                yield _reconnect()
                return
            for entry in entries:
                async for step in self._tell(entry):
                    yield step
            if entries and entries[-1].kind is not Kind.END:
                silent = 0.0
                continue
            if story.state.final and not entries:
                if self._text != story.text:
                    self._text = story.text
                    yield Snapshot(story.text)
                yield Done(story)
                return
            before, story = story, await self._stories.get(self._caller, story.id)
            if story.state is not before.state and not story.state.final:
                yield StateChange(story.state)
            silent += min(_LOOK_SECONDS, self._heartbeat_seconds)
            if silent >= self._heartbeat_seconds and not story.state.final:
                silent = 0.0
                yield Heartbeat()

    async def _tell(self, entry: Entry) -> AsyncIterator[Step]:
        had = self._text
        self._text, self.position = fold(had, entry), entry.position
        match entry.kind:
            case Kind.BEGIN:
                yield StateChange(State.RUNNING)
                if had or entry.position.attempt > 1:
                    yield Reset(entry.position.attempt)
            case Kind.CHUNK:
                yield Chunk(entry.text)
            case Kind.SNAPSHOT:
                yield Snapshot(entry.text)
            case Kind.END:
                return

    async def _wait(self, story_id: UUID, seconds: float) -> list[Entry] | None:
        """None when the server is leaving."""
        waiting = asyncio.create_task(self._progress.wait(story_id, self.position, seconds))
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait([waiting, stopping], return_when=asyncio.FIRST_COMPLETED)
            return None if stopping.done() else await waiting
        finally:
            waiting.cancel()
            stopping.cancel()
            # Not left behind: the cancelled read has a connection to give back.
            await asyncio.gather(waiting, stopping, return_exceptions=True)


def _reconnect() -> Reconnect:
    """Spread out, so that the watchers of a leaving replica do not all arrive elsewhere in the same instant."""
    return Reconnect(timedelta(seconds=random.uniform(0.5, 1.5)))  # noqa: S311  # spreads load
