"""Erasure of a deleted account's stories, and the completion of interrupted deletions of single stories."""

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
    """Erases stories. Idempotent, and safe to interrupt anywhere: the row, by which a story is found, is deleted last.

    One transaction deletes at most `batch` stories, so that no lock is held for long.
    """

    def __init__(self, db: Database, progress: Progress, clock: Clock, *, batch: int = 500) -> None:
        self._db = db
        self._progress = progress
        self._clock = clock
        self._batch = batch

    async def finish_deletions(self, begun_before: timedelta) -> int:
        """Remove stories whose deletion began `begun_before` ago but was interrupted, such as when Redis did not answer.

        At most `batch` of them. Returns how many there were. Raises RedisError.
        """
        async with self._db.transaction() as tx:
            hidden = await store.stories.hidden(tx, begun_before, self._batch)
        if hidden:
            await self._progress.erase(hidden)
            async with self._db.transaction() as tx:
                await store.stories.erase(tx, hidden)
            log.info("finished the deletion of %d stories", len(hidden))
        return len(hidden)

    async def erase(self, owner_id: UUID) -> None:
        """Delete the owner's stories in any state, stop their workers and watches, and prevent new ones by a tombstone.

        Raises RedisError when Redis, which holds their progress, does not answer.
        """
        async with self._db.transaction() as tx:
            await erasure.erase(tx, owner_id)
        erased = 0
        while True:
            async with self._db.transaction() as tx:
                found = await store.stories.ids_of(tx, owner_id, self._batch)
            if not found:
                break
            # Progress before rows, because the rows name the streams. A stream expires KEPT after the story has ended; twice
            # that allows for clocks that differ.
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
