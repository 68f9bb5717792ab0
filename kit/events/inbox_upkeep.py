"""Upkeep of an inbox: brings replayed dead letters back, and removes records that are not needed any more."""

from __future__ import annotations

import asyncio
from datetime import datetime

from redis.asyncio import Redis
from sqlalchemy import func, select

from kit.data.database import Database, Transaction
from kit.runtime.loops import every

from . import dead_letter_store, inbox_store
from .inbox_stream import InboxStream, InboxTuning, stream_of
from .redis_memory import RedisMemory

_PURGE_SECONDS = 3600.0
_PURGE_RETRY_SECONDS = 10.0
_AT_A_TIME = 100


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
            group.create_task(every(self._look_seconds, stopping, self._look, failure=failure))
            purge = every(_PURGE_SECONDS, stopping, self.purge, failure=failure, retry=lambda _: _PURGE_RETRY_SECONDS)
            group.create_task(purge)

    async def _look(self) -> bool:
        return await self.return_replayed() == _AT_A_TIME

    async def return_replayed(self) -> int:
        """Brings replayed dead letters back into the inbox, at least once each, like the relay. Returns how many."""
        await self._memory.check()
        async with self._db.transaction() as tx:
            letters = await dead_letter_store.lock_to_return(tx, self._service, _AT_A_TIME)
            if letters:
                now: datetime = (await tx.execute(select(func.now()))).scalar_one()
                async with self._redis.pipeline(transaction=False) as pipeline:
                    for letter in letters:
                        # Without the failures of its former life.
                        pipeline.xadd(stream_of(self._service), {"event": letter["event"]})
                    self._memory.note(pipeline, now)
                    await pipeline.execute()
                await dead_letter_store.mark_returned(tx, [letter["event_id"] for letter in letters])
        return len(letters)

    async def purge(self) -> bool:
        """Removes content of dead letters settled long ago, and the record of events that cannot come again.

        True when more is left.
        """
        async with self._db.transaction() as tx:
            await dead_letter_store.forget_settled(tx)
        if not self._records_events:
            return False
        oldest_at = await self._stream.oldest_at()
        async with self._db.transaction() as tx:
            return await inbox_store.purge(tx, oldest_at) == inbox_store.PURGED_AT_A_TIME

    async def _lost(self, tx: Transaction, since: datetime | None) -> None:
        await dead_letter_store.return_again(tx, self._service, since)
