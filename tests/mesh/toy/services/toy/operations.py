"""The operation that counts changes."""

from sqlalchemy import text

from kit.data.database import Database
from kit.events.envelope import Event


class Changes:
    """The counted changes of profiles."""

    def __init__(self, db: Database, *, step: int) -> None:
        self._db = db
        self._step = step

    async def add(self, event: Event) -> None:
        async with self._db.transaction() as tx:
            insert = text("INSERT INTO changes (event_id, counts) VALUES (:id, :counts) ON CONFLICT DO NOTHING")
            await tx.execute(insert, {"id": event.id, "counts": self._step})

    async def count(self) -> int:
        async with self._db.transaction() as tx:
            return int((await tx.execute(text("SELECT coalesce(sum(counts), 0) FROM changes"))).scalar_one())
