"""Removes what nobody can see any more: the rest of broken-off deletions, and admissions that count for no quota."""

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
    """Each replica does it, for a repetition does no harm."""

    def __init__(self, db: Database, erasing: Erasing, clock: Clock) -> None:
        self._db = db
        self._erasing = erasing
        self._clock = clock

    async def run(self, stopping: asyncio.Event) -> None:
        """Prunes until `stopping` is set."""
        await every(_EVERY_SECONDS, stopping, self.prune, failure="nothing can be pruned now")

    async def prune(self, broken_off_after: timedelta = _BROKEN_OFF_AFTER) -> None:
        # Twice the time, for clocks differ.
        async with self._db.transaction() as tx:
            await store.admissions.forget(tx, before=self._clock() - 2 * DAY)
        await self._erasing.finish_deletions(broken_off_after)
