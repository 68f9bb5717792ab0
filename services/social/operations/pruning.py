"""Prunes what counts no more: reservations of handles that have ended, and changes of handles that are long past."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from kit.data.database import Database
from kit.runtime.clock import Clock
from kit.runtime.loops import every

from .. import store
from ..model.handles import CHANGES_WITHIN

_EVERY_SECONDS = 3600.0
_MARGIN = timedelta(days=1)
"""Clocks differ."""


class Pruning:
    """Prunes periodically. Each worker does it; a repetition is harmless."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    async def run(self, stopping: asyncio.Event) -> None:
        """Prune every hour until `stopping` is set."""
        await every(_EVERY_SECONDS, stopping, self.prune, failure="nothing can be pruned now")

    async def prune(self) -> None:
        now = self._clock() - _MARGIN
        async with self._db.transaction() as tx:
            await store.handles.forget(tx, free_before=now, changed_before=now - CHANGES_WITHIN)
