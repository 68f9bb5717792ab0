"""Erasing all that is known of a person whose account is gone, and the last of stories that their owners have deleted."""

from __future__ import annotations

import logging
from datetime import timedelta
from uuid import UUID

from kit.data.database import Database
from kit.events import erasure
from kit.runtime.clock import Clock

from .. import store
from ..store.progress import KEPT, Progress

log = logging.getLogger(__name__)


class Erasing:
    """Can be broken off anywhere and repeated: a story goes last from where it is found.

    One transaction deletes at most `batch` stories, so that no lock is held for long.
    """

    def __init__(self, db: Database, progress: Progress, clock: Clock, *, batch: int = 500) -> None:
        self._db = db
        self._progress = progress
        self._clock = clock
        self._batch = batch

    async def finish_deletions(self, begun_before: timedelta) -> int:
        """Removes stories whose deletion was broken off, as it is when Redis is away. Returns how many there were."""
        async with self._db.transaction() as tx:
            hidden = await store.stories.hidden(tx, begun_before, self._batch)
        if hidden:
            await self._progress.erase(hidden)
            async with self._db.transaction() as tx:
                await store.stories.erase(tx, hidden)
            log.info("finished the deletion of %d stories", len(hidden))
        return len(hidden)

    async def erase(self, owner_id: UUID) -> None:
        """Deletes the owner's stories, in whatever state, and lets no other come into being.

        Whoever writes or watches one of them is stopped. Raises RedisError while Redis is away, which holds words as well.
        """
        async with self._db.transaction() as tx:
            await erasure.erase(tx, owner_id)
        erased = 0
        while True:
            async with self._db.transaction() as tx:
                found = await store.stories.ids_of(tx, owner_id, self._batch)
            if not found:
                break
            # The words first, for without the stories nobody would know where they are. Twice the time, for clocks differ.
            expired_at = self._clock() - 2 * KEPT
            await self._progress.erase(
                [id_ for id_, ended_at in found.items() if not ended_at or ended_at > expired_at]
            )
            async with self._db.transaction() as tx:
                await store.stories.erase(tx, found)
            erased += len(found)
        async with self._db.transaction() as tx:
            await store.admissions.erase(tx, owner_id)
        log.info("erased %d stories of a deleted account", erased)
