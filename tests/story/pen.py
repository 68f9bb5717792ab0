"""Attempts at stories that a test makes entry by entry, without a worker."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from redis.asyncio import Redis
from sqlalchemy import delete
from storymesh.events.v1.story_events_pb2 import StoryRequested
from uuid_utils.compat import uuid7

from kit.data.database import Database
from kit.events import outbox
from kit.runtime.clock import system_clock
from services.story import store
from services.story.model import Checkpoint, Length, Limits, Position, Wish
from services.story.store.progress import Progress, ProgressKind

LEASE = timedelta(minutes=5)
ROOMY = Limits(unfinished=1_000_000, a_day=1_000_000, backlog=1_000_000)
WISH = Wish(preferences=("rain",), theme="", prompt="", length=Length.SHORT, language="en")


async def queued(db: Database, owner_id: UUID) -> UUID:
    """Insert a queued story without its event, so that no worker begins it."""
    story_id = uuid7()
    event = outbox.values_of(StoryRequested(story_id=str(story_id)), key=story_id)
    async with db.transaction() as tx:
        requested = store.requests.Requested(
            story_id, owner_id, WISH, WISH.digest(), None, event=event, at=system_clock()
        )
        story, _ = await store.requests.insert_admitted(tx, requested, ROOMY)
        assert story
        await tx.execute(delete(outbox.table).where(outbox.table.c.key == str(story_id)))
        await store.admissions.erase(tx, owner_id)
    return story_id


class Pen:
    """One attempt at a story, in the database and the progress stream."""

    def __init__(self, db: Database, redis: Redis, story_id: UUID) -> None:
        self.text = ""
        self.position = Position(0, 0)
        self._db = db
        self._progress = Progress(redis)
        self.story_id = story_id

    async def take(self) -> None:
        """Begin the attempt in the database, without an entry for watchers."""
        async with self._db.transaction() as tx:
            story = await store.attempts.begin(
                tx, self.story_id, writer="pen", model="", lease=LEASE, now=system_clock()
            )
        assert story
        self.position = Position(story.attempt, 0)

    async def begin(self) -> None:
        await self.take()
        await self.open()

    async def open(self) -> None:
        await self._progress.append(self.story_id, self.position, ProgressKind.BEGIN)

    async def add(self, words: str) -> None:
        self.text += words
        await self._append(ProgressKind.CHUNK, words)

    async def snapshot(self, text: str) -> None:
        """Append a snapshot, as an attempt does that continues a checkpoint."""
        self.text = text
        await self._append(ProgressKind.SNAPSHOT, text)

    async def requeue(self) -> None:
        async with self._db.transaction() as tx:
            assert await store.attempts.requeue(
                tx, self.story_id, self.position.attempt, Checkpoint("", self.text), pause=None
            )
        await self._append(ProgressKind.END)

    async def commit(self) -> None:
        """Complete the story in the database, without an entry for watchers."""
        async with self._db.transaction() as tx:
            assert await store.attempts.complete(
                tx, self.story_id, self.position.attempt, Checkpoint("T", self.text), tokens=(0, 0), now=system_clock()
            )

    async def complete(self) -> None:
        await self.commit()
        await self._append(ProgressKind.END)

    async def _append(self, kind: ProgressKind, text: str = "") -> None:
        self.position = Position(self.position.attempt, self.position.offset + 1)
        if not await self._progress.append(self.story_id, self.position, kind, text):
            await self._progress.append(self.story_id, self.position, ProgressKind.SNAPSHOT, self.text)
