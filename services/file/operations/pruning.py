"""What time does to files: it expires what was not uploaded, finishes what was interrupted, and forgets what is over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

from storymesh.events.v1 import file_events_pb2 as events

from kit.data.database import Database
from kit.events import outbox
from kit.runtime.clock import Clock
from kit.runtime.loops import every

from .. import store
from ..model.quotas import DAY
from .removing import BATCH, Removing

log = logging.getLogger(__name__)

_EVERY_SECONDS = 60.0
_LOOK_SECONDS = 15.0
_INTERRUPTED_AFTER = timedelta(minutes=1)
_LOST_AFTER = timedelta(minutes=5)
_GIVEN_UP_AFTER = DAY
"""Counted from the end of the time in which it could be uploaded."""

_TOLD_FOR = timedelta(days=30)
"""How long a refused or expired file is shown to its owner."""

WaitingSince = Callable[[], Awaitable[datetime | None]]
"""Returns when the oldest waiting event of the inbox was published; None when no event waits."""


class Pruning:
    """Prunes periodically. Each worker does it; a repetition is harmless."""

    def __init__(self, db: Database, removing: Removing, clock: Clock) -> None:
        self._db = db
        self._removing = removing
        self._clock = clock

    async def run(self, stopping: asyncio.Event) -> None:
        """Prune every minute until `stopping` is set."""
        await every(_EVERY_SECONDS, stopping, self.prune, failure="nothing can be pruned now")

    async def prune(self, interrupted_after: timedelta = _INTERRUPTED_AFTER) -> bool:
        """Prune at most a batch of each kind. True if there may be more. Raises ObjectStoreUnavailable."""
        now = self._clock()
        async with self._db.transaction() as tx:
            expired = await store.removal.expire(tx, BATCH, now=now)
        async with self._db.transaction() as tx:
            given_up = await store.checking.abandoned(tx, BATCH, expired_before=now - _GIVEN_UP_AFTER, now=now)
            for file_id, owner_id, reason in given_up:
                event = events.FileRejected(file_id=str(file_id), owner_id=str(owner_id), reason=reason)
                await outbox.add(tx, event, key=file_id)
        async with self._db.transaction() as tx:
            over = await store.removal.ended_before(tx, BATCH, before=now - _TOLD_FOR)
            await store.files.erase(tx, over)
        async with self._db.transaction() as tx:
            # An admission counts for one day; two days allow for clocks that differ.
            await store.quotas.forget(tx, before=now - 2 * DAY)
            await store.claims.forget_lapsed(tx, before=now - DAY)
        if expired:
            log.info("%d files were not uploaded in time", expired)
        if given_up:
            log.error("%d files could not be checked for a day and are refused", len(given_up))
        more = await self._removing.finish(interrupted_after)
        return more or BATCH in (expired, len(given_up), len(over))


class LostChecks:
    """Publishes FileUploaded again for files whose check was lost: Redis may lose stream entries, Postgres keeps the files.

    Only files that were dispatched before the oldest waiting event was published count as lost; the others may wait in a long
    backlog. A needless repetition is harmless.
    """

    def __init__(
        self, db: Database, waiting_since: WaitingSince, clock: Clock, *, lost_after: timedelta = _LOST_AFTER
    ) -> None:
        self._db = db
        self._waiting_since = waiting_since
        self._clock = clock
        self._lost_after = lost_after

    async def run(self, stopping: asyncio.Event) -> None:
        """Look every 15 s until `stopping` is set."""
        await every(_LOOK_SECONDS, stopping, self.look, failure="lost checks cannot be looked for now")

    async def look(self) -> int:
        """Request at most a batch of lost checks again; return their number. Raises RedisError."""
        before = await self._waiting_since()
        async with self._db.transaction() as tx:
            lost = await store.checking.lock_undispatched(tx, self._lost_after, BATCH, now=self._clock(), before=before)
            for file_id in lost:
                await outbox.add(tx, events.FileUploaded(file_id=str(file_id)), key=file_id)
        if lost:
            log.warning("requested the checks of %d files again", len(lost))
        return len(lost)
