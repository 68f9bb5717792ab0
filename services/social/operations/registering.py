"""Profiles of people who have just registered."""

from __future__ import annotations

from uuid import UUID

from kit.data.database import Database
from kit.events import erasure
from kit.runtime.clock import Clock

from .making import make


class Registering:
    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    async def make(self, user_id: UUID) -> None:
        """Make the person's profile unless there is or was one. Idempotent, however old the event is that asks for it."""
        async with self._db.transaction() as tx:
            if not await erasure.is_erased(tx, user_id):
                await make(tx, user_id, self._clock())
