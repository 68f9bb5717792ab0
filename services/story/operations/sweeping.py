"""Requests stories again whose StoryRequested was lost: Redis may lose stream entries, Postgres keeps the stories."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

from storymesh.events.v1 import story_events_pb2 as events

from kit.data.database import Database
from kit.events import outbox
from kit.runtime.loops import every

from .. import store

log = logging.getLogger(__name__)

_EVERY_SECONDS = 15.0
_LOST_AFTER = timedelta(minutes=2)
_BATCH = 100


WaitingSince = Callable[[], Awaitable[datetime | None]]
"""Returns when the oldest waiting event of the inbox was published; None when no event waits."""


class Sweeper:
    """Publishes StoryRequested again for lost stories: unfinished, without a live lease, and due for `lost_after`.

    Only stories that were due before the oldest waiting event was published count as lost; the others may wait in a long backlog.
    A needless repetition is harmless.
    """

    def __init__(self, db: Database, waiting_since: WaitingSince, *, lost_after: timedelta = _LOST_AFTER) -> None:
        self._db = db
        self._waiting_since = waiting_since
        self._lost_after = lost_after

    async def run(self, stopping: asyncio.Event) -> None:
        """Sweep every 15 s until `stopping` is set."""
        await every(_EVERY_SECONDS, stopping, self.sweep, failure="lost stories cannot be looked for now")

    async def sweep(self) -> int:
        """Request at most 100 lost stories again; return their number. Raises RedisError."""
        waiting_since = await self._waiting_since()
        async with self._db.transaction() as tx:
            lost = await store.attempts.lock_undispatched(tx, self._lost_after, _BATCH, before=waiting_since)
            for story_id in lost:
                await outbox.add(tx, events.StoryRequested(story_id=str(story_id)), key=story_id)
        if lost:
            log.warning("requested %d lost stories again", len(lost))
        return len(lost)
