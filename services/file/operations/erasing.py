"""Erasure of a deleted account's files, their bytes included."""

from __future__ import annotations

import logging
from uuid import UUID

from storymesh.events.v1 import file_events_pb2 as events

from kit.data.database import Database
from kit.events import erasure, outbox
from kit.runtime.clock import Clock

from .. import store
from .removing import BATCH, Removing

log = logging.getLogger(__name__)


class Erasing:
    """Erases files. Idempotent, and safe to interrupt anywhere. One transaction has at most `batch` files."""

    def __init__(self, db: Database, removing: Removing, clock: Clock, *, batch: int = BATCH) -> None:
        self._db = db
        self._removing = removing
        self._clock = clock
        self._batch = batch

    async def erase(self, owner_id: UUID) -> None:
        """Delete the owner's files in any state, claimed ones too, and prevent new ones by a tombstone.

        Raises ObjectStoreUnavailable while the store, which has their bytes, does not answer: nobody sees them any more by then.
        """
        async with self._db.transaction() as tx:
            await erasure.erase(tx, owner_id)
        while await self._hide(owner_id):
            pass
        erased = 0
        while True:
            async with self._db.single() as tx:
                held = await store.removal.of_owner(tx, owner_id, self._batch)
            if not held:
                break
            await self._removing.remove(held)
            erased += len(held)
        async with self._db.transaction() as tx:
            await store.quotas.erase(tx, owner_id)
        log.info("erased %d files of a deleted account", erased)

    async def _hide(self, owner_id: UUID) -> bool:
        """Hide a batch, and tell those that show the files. False if there was none."""
        async with self._db.transaction() as tx:
            seen = await store.removal.visible_of_owner(tx, owner_id, self._batch)
            for file_id in await store.files.hide(tx, seen, now=self._clock()):
                await outbox.add(tx, events.FileErased(file_id=str(file_id), owner_id=str(owner_id)), key=file_id)
        return bool(seen)
