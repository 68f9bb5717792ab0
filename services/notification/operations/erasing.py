"""Erasure of everything that is stored about a person whose account was deleted."""

from __future__ import annotations

from uuid import UUID

from kit.data.database import Database
from kit.events import erasure
from kit.runtime.clock import Clock, system_clock

from .. import store
from .notifications import Acts


class Erasing:
    """Erases a person: interruptible and idempotent. Deletes at most `batch` rows in a transaction, to hold no lock for long."""

    def __init__(self, db: Database, *, clock: Clock = system_clock, batch: int = 1000) -> None:
        self._db = db
        self._acts = Acts(db, clock)
        self._batch = batch

    async def erase(self, user_id: UUID) -> None:
        """Delete the person's notifications, their part in those of others, deliveries, webhooks, suppressions and dead letters.

        Removes their id from what they did as an administrator. Leaves a tombstone that prevents new ones.
        """
        async with self._db.transaction() as tx:
            await erasure.erase(tx, user_id)
        erased = True
        while erased:
            async with self._db.transaction() as tx:
                erased = await store.erasure.erase_some(tx, user_id, self._batch) > 0
        await self._acts.erase(user_id, self._batch)
        async with self._db.transaction() as tx:
            await store.webhook_acts.forget_actor(tx, user_id)
            await store.erasure.erase_dead_letters(tx, user_id)
