"""Notices that Redis lost something it was told: all of it, or its last words.

Redis holds nothing but copies, so what it lost can be told again, once somebody knows. It keeps two notes for each writer: a random
epoch, of which Postgres has a copy, and when it was last told something. Without the right epoch it is another Redis, or an emptied
one: everything is lost. With the epoch, but as another run of the server, it may lack what came after the last note that it still
has: the second before a crash (`appendfsync everysec`), what a replica had not got yet, or hours since a snapshot.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from sqlalchemy import BigInteger, Column, DateTime, Table, Text, func, select, update
from sqlalchemy.dialects.postgresql import insert

from kit.data.database import Database, Transaction

from . import outbox

log = logging.getLogger(__name__)

_OVERLAP = timedelta(minutes=1)
"""Repeated on top of what came after the last note: transactions overlap, and clocks differ."""

redis_memories = Table(
    "redis_memories",
    outbox.metadata,
    Column("name", Text, primary_key=True),
    Column("epoch", Text, nullable=False),
    Column("run_id", Text, nullable=False),
    # What the relay still has to repeat: rows published in this time, behind this position. NULL: nothing.
    Column("repeat_since", DateTime(timezone=True)),
    Column("repeat_before", DateTime(timezone=True)),
    Column("repeat_after", BigInteger),
    Column("repeated_at", DateTime(timezone=True)),
)

_ASK = """
-- KEYS: notes. Asked before each telling, so one way to Redis and an answer of three words, not the server's whole report.
local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local notes = redis.call('HMGET', KEYS[1], 'epoch', 'told_at')
return {run_id, notes[1] or '', notes[2] or ''}
"""

Lost = Callable[[Transaction, datetime | None], Awaitable[None]]
"""Records in the transaction that what Redis was told since then may be lost. None: all that it was ever told."""


@dataclass(frozen=True, slots=True)
class _State:
    epoch: str
    run_id: str
    told_at: datetime | None


class RedisMemory:
    """What one writer to Redis, such as the relay of a service, knows of Redis' memory. Its replicas share the name."""

    def __init__(self, db: Database, redis: Redis, name: str, lost: Lost) -> None:
        self._db = db
        self._redis = redis
        self._name = name
        self._key = f"memory:{name}"
        self._lost = lost
        self._asking = redis.register_script(_ASK)
        self._known: tuple[str, str] | None = None

    async def check(self) -> bool:
        """Call it before writing to Redis. True when this process learned of a loss, by itself or from a replica.

        A loss that cannot be recorded now is found again by the next check: Redis gets its new epoch before the commit that makes
        the same one known, so that whatever breaks off in between leaves the two apart.
        """
        state = await self._ask()
        if (state.epoch, state.run_id) == self._known:
            return False
        async with self._db.transaction() as tx:
            row = await self._lock(tx)
            # Ask again: while this process waited for the lock, another may have recorded the loss.
            state = await self._ask()
            if state.epoch and state.epoch == row["epoch"]:
                epoch, since = state.epoch, state.told_at and state.told_at - _OVERLAP
            else:
                epoch, since = uuid4().hex, None
            if (epoch, state.run_id) != (row["epoch"], row["run_id"]):
                if row["epoch"]:
                    log.warning("Redis may have lost what it was told since %s: %s", since or "ever", self._name)
                await self._lost(tx, since)
                if epoch != state.epoch:
                    now: datetime = (await tx.execute(select(func.now()))).scalar_one()
                    await self._redis.hset(self._key, mapping={"epoch": epoch, "told_at": now.isoformat()})
                table = redis_memories
                await tx.execute(
                    update(table).where(table.c.name == self._name).values(epoch=epoch, run_id=state.run_id)
                )
        self._known = (epoch, state.run_id)
        return True

    def note(self, pipeline: Pipeline, now: datetime) -> None:
        """Add to the pipeline the note when Redis was written to: the database's time at the beginning of the transaction."""
        pipeline.hset(self._key, "told_at", now.isoformat())

    async def _lock(self, tx: Transaction) -> Any:
        table = redis_memories
        await tx.execute(insert(table).values(name=self._name, epoch="", run_id="").on_conflict_do_nothing())
        return (await tx.execute(select(table).where(table.c.name == self._name).with_for_update())).mappings().one()

    async def _ask(self) -> _State:
        run_id, epoch, told_at = await self._asking(keys=[self._key])
        return _State(epoch.decode(), run_id.decode(), datetime.fromisoformat(told_at.decode()) if told_at else None)
