"""Copies committed outbox rows to the inbox streams of the subscribing services. Any number of relays may run on one outbox.

Redis is only a copy: when it lost something (see `redis_memory`), the rows that it was told are copied once more, as far back as it
may have lost them, in their order and marked as repeats. New rows of a key wait until those before them were repeated; all others
go on meanwhile. Consumers drop what they have dealt with.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import chain
from operator import itemgetter
from time import monotonic
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from sqlalchemy import ColumnElement, FromClause, Select, case, delete, exists, func, select, update
from sqlalchemy.engine.row import RowMapping
from sqlalchemy.sql.dml import ReturningUpdate

from kit.data.database import Database, Transaction
from kit.data.prepared import Prepared
from kit.runtime.loops import every

from . import outbox
from .envelope import Event
from .inbox_stream import stream_of
from .redis_memory import RedisMemory, redis_memories
from .relay_sleep import RelaySleep

log = logging.getLogger(__name__)

_BATCH = 100
_POLL_SECONDS = 1.0
_GATHERING_SECONDS = 0.005
"""Pause after a batch: a transaction for every row that is written would cost more than all else. A quiet relay does not wait."""
_AWAKE_SECONDS = 0.01
"""Pause between two looks of a relay that nobody notifies, because rows come fast."""
_PURGE_EVERY_SECONDS = 3600.0
_PURGED_AT_A_TIME = 5_000
_LONGEST_BACKLOG = 1000

_Row = Mapping[str, Any] | RowMapping
"""A row of the outbox, as psycopg or SQLAlchemy reads it."""

_row, _earlier, _plans = outbox.table, outbox.table.alias("earlier"), redis_memories
_before = (_earlier.c.key == _row.c.key) & (_earlier.c.position < _row.c.position)

_DUE = (
    select(_row.c.position)
    .where(_row.c.published_at.is_(None), ~exists().where(_before, _earlier.c.published_at.is_(None)))
    .order_by(_row.c.position)
    .limit(_BATCH)
    .with_for_update(skip_locked=True)
)
"""A row waits while an earlier one of its key is unpublished, also when another relay holds that one.

SKIP LOCKED alone would let this relay overtake it.
"""


_UNPUBLISHED = (
    select(func.count())
    .select_from(select(_earlier.c.position).where(_earlier.c.published_at.is_(None)).limit(_BATCH + 1).subquery())
    .scalar_subquery()
    .label("unpublished")
)
"""As the statement found it, and not counted further than what says that there is more than a batch."""


def _marked(due: Select[tuple[int]]) -> ReturningUpdate[Any]:
    # A CTE: Postgres may run a subquery more than once, and lock other rows each time.
    return (
        update(_row)
        .where(_row.c.position.in_(select(due.cte("due").c.position)))
        .values(published_at=func.now())
        .returning(_row, _UNPUBLISHED)
    )


_MARK = Prepared(_marked(_DUE))


class Relay:
    """At least once: a crash between the copy and the commit repeats the copy, and consumers drop the repeat by its id."""

    def __init__(
        self,
        db: Database,
        redis: Redis,
        routes: Mapping[str, Sequence[str]],
        *,
        service: str,
        database_url: str,
        poll_seconds: float = _POLL_SECONDS,
        repeated_at_a_time: int = _BATCH,
        purged_at_a_time: int = _PURGED_AT_A_TIME,
        longest_backlog: int = _LONGEST_BACKLOG,
    ) -> None:
        """`routes`: names of the inboxes that take each event, by the full name of its message.

        `poll_seconds` is the longest that a row waits when its NOTIFY was lost. Repeats wait while an inbox holds more than
        `longest_backlog` entries, so that new events do not queue behind a week of old ones, nor fill Redis.
        """
        self._db = db
        self._redis = redis
        self._routes = routes
        self._poll_seconds = poll_seconds
        self._repeated_at_a_time = repeated_at_a_time
        self._purged_at_a_time = purged_at_a_time
        self._longest_backlog = longest_backlog
        self._wake = asyncio.Event()
        self._sleep = RelaySleep(database_url, self._wake.set)
        self._name = f"outbox:{service}"
        self._memory = RedisMemory(db, redis, self._name, self._lost)
        self._more = False
        """True when more was due than the last batch took, such as a second row of one key. What came later wakes us."""
        self._gathered_at = 0.0
        """When the next batch may begin."""
        self._repeating = True
        """True until we know that no repeat is pending: a previous run or another relay may have left one."""

    async def run(self, stopping: asyncio.Event) -> None:
        """Publishes until `stopping` is set. Survives restarts of Postgres and Redis."""
        async with asyncio.TaskGroup() as group:
            # NOTIFY saves the wait for the next poll.
            sleeping = group.create_task(self._sleep.run())
            purged = "published outbox rows cannot be removed now"
            group.create_task(every(_PURGE_EVERY_SECONDS, stopping, self.purge, failure=purged))
            relayed = "the outbox cannot be relayed now"
            await every(self._poll_seconds, stopping, self._relay, failure=relayed, wake=self._wake)
            sleeping.cancel()

    async def _relay(self) -> bool:
        """True when more is due. Rows that are written during the pause after a batch are the next one."""
        if (wait := self._gathered_at - monotonic()) > 0:
            await asyncio.sleep(wait)
            # This look sees what woke us meanwhile.
            self._wake.clear()
        found = await self.publish()
        more = found > 0 and self._more
        if not more:
            self._gathered_at = monotonic() + (_AWAKE_SECONDS if self._sleep.awake else _GATHERING_SECONDS)
        if self._repeating:
            more = await self.repeat() > 0 or more
        self._sleep.looked(found)
        return more or self._sleep.awake

    async def publish(self) -> int:
        """Publishes one batch and returns its size; 0 when nothing is due. A batch holds one row of each key at most.

        The rows are marked, copied, and only then is the mark committed: their locks are held through the bounded pipeline.
        """
        self._repeating |= await self._memory.check()
        async with self._db.transaction() as tx:
            # With its values, not joined: a planner without statistics would compare every row with every other.
            plan = await self._plan(tx) if self._repeating else None
            rows: Iterable[_Row]
            if plan:
                unrepeated = _DUE.where(~exists().where(_before, *_in(plan, _earlier)))
                rows = (await tx.execute(_marked(unrepeated))).mappings()
            else:
                rows = await _MARK.execute(tx, {})
            marked = sorted(rows, key=itemgetter("position"))
            if not marked:
                return 0
            self._more = marked[0]["unpublished"] > len(marked)
            # One transaction, so that a waiting worker gets the whole batch, and not its first event alone. No script: Redis would
            # ask for the right to read the inboxes, which publishers have not.
            async with self._redis.pipeline(transaction=True) as pipeline:
                self._copy(pipeline, marked)
                self._memory.note(pipeline, marked[0]["published_at"])
                await pipeline.execute()
        return len(marked)

    async def repeat(self) -> int:
        """Publishes one batch of what Redis lost once more, and returns its size; 0 when none is left or an inbox is full.

        One relay at a time, so the rows keep their order. How far it came is committed with each batch.
        """
        async with self._db.transaction() as tx:
            plan = await self._plan(tx, lock=True)
            if plan is None:
                self._repeating = False
                return 0
            if await self._full():
                return 0
            lost = select(_row).where(*_in(plan, _row)).order_by(_row.c.position).limit(self._repeated_at_a_time)
            rows = (await tx.execute(lost)).mappings().all()
            if rows:
                async with self._redis.pipeline(transaction=False) as pipeline:
                    self._copy_again(pipeline, rows)
                    await pipeline.execute()
                progress = {"repeat_after": rows[-1]["position"]}
            else:
                log.info("what Redis may have lost of %s has been published again", self._name)
                progress = {"repeat_before": None, "repeated_at": func.now()}
            await tx.execute(update(_plans).where(_plans.c.name == self._name).values(progress))
        return len(rows)

    async def _plan(self, tx: Transaction, *, lock: bool = False) -> RowMapping | None:
        """What is left to repeat; None when nothing is."""
        query = select(_plans).where(_plans.c.name == self._name, _plans.c.repeat_before.is_not(None))
        return (await tx.execute(query.with_for_update() if lock else query)).mappings().one_or_none()

    async def _lost(self, tx: Transaction, since: datetime | None) -> None:
        """Plan the repeat. One that has not ended, or ended recently, begins anew: what it told Redis may be lost now."""
        begin = func.greatest(since, func.now() - outbox.KEPT)
        recent = _plans.c.repeat_before.is_not(None) | (_plans.c.repeated_at >= begin)
        # Both functions pass over what is NULL.
        from_both = case((recent, func.least(_plans.c.repeat_since, begin)), else_=begin)
        plan = {"repeat_since": from_both, "repeat_before": func.now(), "repeat_after": 0}
        await tx.execute(update(_plans).where(_plans.c.name == self._name).values(plan))

    async def _full(self) -> bool:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for inbox in sorted(set(chain.from_iterable(self._routes.values()))):
                pipeline.xlen(stream_of(inbox))
            return max(await pipeline.execute(), default=0) > self._longest_backlog

    def _copy(self, pipeline: Pipeline, rows: Iterable[_Row]) -> None:
        for each in rows:
            inboxes = self._inboxes(each["type"])
            data = _event(each).to_bytes() if inboxes else b""
            for inbox in inboxes:
                pipeline.xadd(stream_of(inbox), {"event": data})

    def _copy_again(self, pipeline: Pipeline, rows: Iterable[_Row]) -> None:
        for each in rows:
            for inbox in self._inboxes(each["type"]):
                pipeline.xadd(stream_of(inbox), {"event": _event(each).to_bytes(), "again": "1"})

    def _inboxes(self, event_type: str) -> Sequence[str]:
        inboxes = self._routes.get(event_type)
        if inboxes is None:
            # Counted as published: it would hold up every later event of its key for ever.
            log.error("nobody gets %s: the contract does not have it in this version", event_type)
            return ()
        return inboxes

    async def purge(self) -> bool:
        """Removes published rows that no Redis can ask for any more, the oldest first. True when more are left.

        A bounded number: what one statement could not delete in time would stay for good.
        """
        old = _row.c.published_at < func.now() - outbox.KEPT
        some = select(_row.c.position).where(old).order_by(_row.c.position).limit(self._purged_at_a_time)
        async with self._db.transaction() as tx:
            return (await tx.execute(delete(_row).where(_row.c.position.in_(some)))).rowcount == self._purged_at_a_time


def _in(plan: RowMapping, row: FromClause) -> Sequence[ColumnElement[bool]]:
    return (
        row.c.position > plan["repeat_after"],
        row.c.published_at >= plan["repeat_since"],
        row.c.published_at < plan["repeat_before"],
    )


def _event(row: _Row) -> Event:
    return Event(
        id=row["id"],
        type=row["type"],
        key=row["key"],
        occurred_at=row["occurred_at"],
        traceparent=row["traceparent"],
        payload=row["payload"],
        version=row["version"],
    )
