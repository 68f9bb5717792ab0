"""Removal of objects that serve nothing any more, and of deleted files with all that the store has of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from kit.data.database import Database
from kit.data.objects import Objects
from kit.runtime.clock import Clock

from .. import store
from ..model.object_keys import keys_of
from ..store.removal import Held

log = logging.getLogger(__name__)

BATCH = 500


class Removing:
    """Idempotent, and safe to interrupt anywhere: objects first, then the row, by which they are found.

    Calls raise ObjectStoreUnavailable; what was not removed then is removed by `finish`.
    """

    def __init__(self, db: Database, objects: Objects, clock: Clock) -> None:
        self._db = db
        self._objects = objects
        self._clock = clock

    async def remove_hidden(self, file_id: UUID) -> None:
        """Remove the file if it is deleted."""
        async with self._db.single() as tx:
            held = await store.removal.hidden_file(tx, file_id)
        await self.remove(held)

    async def remove(self, held: Sequence[Held]) -> None:
        """Remove files with everything that the store has of them."""
        if held:
            await self._remove_objects(held, [key for each in held for key in keys_of(each.object_key)])
            async with self._db.transaction() as tx:
                await store.files.erase(tx, [each.id for each in held])

    async def clear(self, file_id: UUID) -> None:
        """Remove the bytes as uploaded, if the file is refused or shown by its renditions alone."""
        async with self._db.single() as tx:
            held = await store.removal.useless_of(tx, file_id)
        await self._clear(held)

    async def finish(self, begun_before: timedelta) -> bool:
        """Do what was interrupted, a batch of each kind. True if there may be more."""
        async with self._db.single() as tx:
            useless = await store.removal.useless(tx, BATCH)
            hidden = await store.removal.hidden(tx, BATCH, deleted_before=self._clock() - begun_before)
        await self._clear(useless)
        await self.remove(hidden)
        if hidden:
            log.info("finished the removal of %d files", len(hidden))
        return BATCH in (len(useless), len(hidden))

    async def _clear(self, held: Sequence[Held]) -> None:
        if held:
            await self._remove_objects(held, [each.object_key for each in held])
            async with self._db.transaction() as tx:
                await store.removal.cleared(tx, [each.id for each in held])

    async def _remove_objects(self, held: Sequence[Held], keys: Sequence[str]) -> None:
        """Remove the bytes. Keys for which a signed upload may still be good get a seal, which the sweep removes later.

        A seal is an empty object, by which the store refuses such an upload as it did while the bytes were there.
        """
        # First: parts that were put together after the rest would be bytes that nobody removes.
        for each in held:
            if each.upload_id is not None:
                await self._objects.abort_parts(each.object_key, each.upload_id)
        now = self._clock()
        sealed = {each.object_key for each in held if each.expires_at > now}
        for key in sorted(sealed):
            await self._objects.put(key, b"", media_type="application/octet-stream")
        if rest := [key for key in keys if key not in sealed]:
            await self._objects.delete(rest)
