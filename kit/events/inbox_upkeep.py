"""What an inbox needs besides being read: replayed dead letters brought back, and records removed that nobody needs any more."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

from redis.asyncio import Redis
from sqlalchemy import Column, DateTime, Table, Uuid, delete, exists, func, select

from kit.data.database import Database, Transaction
from kit.runtime.loops import every

from . import dead_letters, outbox
from .inbox_stream import InboxStream, InboxTuning, stream_of
from .redis_memory import RedisMemory

_PURGE_SECONDS = 3600.0
_PURGE_RETRY_SECONDS = 10.0
_AT_A_TIME = 100
_PURGED_AT_A_TIME = 5_000
_MARGIN = timedelta(days=7)
"""On top of the outbox's own: for clocks that differ, and events that were postponed."""

processed_events = Table(
    "processed_events",
    outbox.metadata,
    Column("event_id", Uuid, primary_key=True),
    Column("processed_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)


class InboxUpkeep:
    """Any number may run on one inbox."""

    def __init__(
        self,
        db: Database,
        redis: Redis,
        service: str,
        stream: InboxStream,
        *,
        records_events: bool,
        look_seconds: float = InboxTuning.look_seconds,
    ) -> None:
        self._db = db
        self._redis = redis
        self._service = service
        self._stream = stream
        self._records_events = records_events
        self._look_seconds = look_seconds
        self._memory = RedisMemory(db, redis, f"inbox:{service}", self._lost)

    async def run(self, stopping: asyncio.Event) -> None:
        """Keeps the inbox in order until `stopping` is set. Survives restarts of Postgres and Redis."""
        failure = f"the inbox {self._service} cannot be kept in order now"
        async with asyncio.TaskGroup() as group:
            group.create_task(every(self._look_seconds, stopping, self.return_replayed, failure=failure))
            purge = every(_PURGE_SECONDS, stopping, self.purge, failure=failure, retry=lambda _: _PURGE_RETRY_SECONDS)
            group.create_task(purge)

    async def return_replayed(self) -> bool:
        """Brings replayed dead letters back into the inbox, at least once each, like the relay. True when more may wait."""
        await self._memory.check()
        async with self._db.transaction() as tx:
            letters = await dead_letters.lock_to_return(tx, self._service, _AT_A_TIME)
            if letters:
                now: datetime = (await tx.execute(select(func.now()))).scalar_one()
                async with self._redis.pipeline(transaction=False) as pipeline:
                    for letter in letters:
                        # Without the failures of its former life.
                        pipeline.xadd(stream_of(self._service), {"event": letter["event"]})
                    self._memory.note(pipeline, now)
                    await pipeline.execute()
                await dead_letters.mark_returned(tx, [letter["event_id"] for letter in letters])
        return len(letters) == _AT_A_TIME

    async def purge(self) -> None:
        """Removes the content of dead letters settled long ago, and the record of events that cannot come again.

        An event comes again while its outbox row lives, which is `outbox.KEPT` after it was published and no longer; or when its
        dead letter is replayed, however old, so the record stays while there is one; or because a copy waits in the stream since
        then, so time is reckoned from the oldest entry when the workers were away for long.
        """
        async with self._db.transaction() as tx:
            await dead_letters.forget_settled(tx)
        if not self._records_events:
            return
        oldest = await self._stream.oldest_at()
        table, letters = processed_events, dead_letters.dead_letters
        before = (func.least(func.now(), oldest) if oldest else func.now()) - (outbox.KEPT + _MARGIN)
        may_be_replayed = exists().where(letters.c.event_id == table.c.event_id)
        past = select(table.c.event_id).where(table.c.processed_at < before, ~may_be_replayed).limit(_PURGED_AT_A_TIME)
        purged = _PURGED_AT_A_TIME
        while purged == _PURGED_AT_A_TIME:
            async with self._db.transaction() as tx:
                purged = (await tx.execute(delete(table).where(table.c.event_id.in_(past)))).rowcount

    async def _lost(self, tx: Transaction, since: datetime | None) -> None:
        await dead_letters.return_again(tx, self._service, since)
