"""Prunes stories whose deletion was interrupted, admissions that no longer count towards a quota, and links that have expired."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from kit.data.database import Database
from kit.runtime.clock import Clock
from kit.runtime.loops import every

from .. import store
from ..model import DAY
from .erasing import Erasing

_EVERY_SECONDS = 60.0
_BROKEN_OFF_AFTER = timedelta(minutes=1)


class Pruning:
    """Prunes periodically. Each worker does it; a repetition is harmless."""

    def __init__(self, db: Database, erasing: Erasing, clock: Clock) -> None:
        self._db = db
        self._erasing = erasing
        self._clock = clock

    async def run(self, stopping: asyncio.Event) -> None:
        """Prune every minute until `stopping` is set."""
        await every(_EVERY_SECONDS, stopping, self.prune, failure="nothing can be pruned now")

    async def prune(self, broken_off_after: timedelta = _BROKEN_OFF_AFTER) -> None:
        # An admission counts for one day; two days allow for clocks that differ.
        async with self._db.transaction() as tx:
            await store.admissions.forget(tx, before=self._clock() - 2 * DAY)
        async with self._db.transaction() as tx:
            await store.links.forget_expired(tx, before=self._clock() - DAY)
        await self._erasing.finish_deletions(broken_off_after)
