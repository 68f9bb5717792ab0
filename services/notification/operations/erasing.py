"""Erasing all that is known of a person whose account is gone."""

from __future__ import annotations

from uuid import UUID

from kit.data.database import Database
from kit.events import erasure

from .. import store


class Erasing:
    """Can be broken off anywhere and repeated. One transaction deletes at most `batch` rows, so that no lock is held for long."""

    def __init__(self, db: Database, *, batch: int = 1000) -> None:
        self._db = db
        self._batch = batch

    async def erase(self, user_id: UUID) -> None:
        """Deletes the person's notifications, the record of their mails and their dead letters, and lets none come after."""
        async with self._db.transaction() as tx:
            await erasure.erase(tx, user_id)
        erased = True
        while erased:
            async with self._db.transaction() as tx:
                erased = await store.erasure.erase_some(tx, user_id, self._batch) > 0
        async with self._db.transaction() as tx:
            await store.erasure.erase_dead_letters(tx, user_id)
