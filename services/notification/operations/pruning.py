"""Prunes notifications and their changes that are older than they are kept."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from uuid import UUID

from kit.data.database import Database
from kit.events import erasure
from kit.runtime.clock import Clock
from kit.runtime.loops import every

from .. import store
from ..model.notifications import ChangeKind

_EVERY_SECONDS = 60.0


class Pruning:
    """Prunes periodically. Each worker does it; a repetition is harmless. Each transaction is short."""

    def __init__(
        self, db: Database, clock: Clock, *, notifications_kept: timedelta, changes_kept: timedelta, batch: int = 1000
    ) -> None:
        self._db = db
        self._clock = clock
        self._notifications_kept = notifications_kept
        self._changes_kept = changes_kept
        self._batch = batch

    async def run(self, stopping: asyncio.Event) -> None:
        """Prune every minute until `stopping` is set."""
        await every(_EVERY_SECONDS, stopping, self.prune, failure="notifications cannot be pruned now")

    async def prune(self) -> bool:
        """Prune a batch. True when more is due."""
        now = self._clock()
        before = now - self._notifications_kept
        async with self._db.transaction() as tx:
            people = await store.notifications.people_with_expired(tx, before, self._batch)
        for user_id in people:
            await self._expire(user_id, before, now)
        async with self._db.transaction() as tx:
            pruned = await store.notification_changes.prune(tx, now - self._changes_kept, self._batch)
        return bool(people) or pruned == self._batch

    async def _expire(self, user_id: UUID, before: datetime, now: datetime) -> None:
        async with self._db.transaction() as tx:
            erased = await erasure.is_erased(tx, user_id)
            if not erased:
                await store.notification_changes.lock(tx, user_id)
            removed = await store.notifications.remove_expired(tx, user_id, before)
            # An erased person watches nothing, and nothing may be written about them.
            if removed and not erased:
                await store.notification_changes.record(tx, user_id, ChangeKind.EXPIRED, now, before=before)
