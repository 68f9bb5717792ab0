"""Removes what nobody can see any more: the rest of broken-off deletions, and admissions that count for no quota."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

from kit.data.database import Database
from kit.runtime.clock import Clock

from .. import store
from ..model import DAY
from .erasing import Erasing

log = logging.getLogger(__name__)

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
        while not stopping.is_set():
            try:
                await self.prune()
            except Exception as error:
                log.warning("nothing can be pruned now: %s", error)
            try:
                async with asyncio.timeout(_EVERY_SECONDS):
                    await stopping.wait()
            except TimeoutError:
                continue

    async def prune(self, broken_off_after: timedelta = _BROKEN_OFF_AFTER) -> None:
        # Twice the time, for clocks differ.
        async with self._db.transaction() as tx:
            await store.admissions.forget(tx, before=self._clock() - 2 * DAY)
        await self._erasing.finish_deletions(broken_off_after)
