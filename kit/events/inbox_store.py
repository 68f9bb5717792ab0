"""Every statement about the table processed_events: which events had their effect."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Column, DateTime, Table, Uuid, delete, exists, func, select
from sqlalchemy.dialects.postgresql import insert

from kit.data.database import Transaction
from kit.data.given_rows import GivenRows
from kit.data.prepared import Prepared

from . import outbox
from .dead_letter_store import dead_letters
from .envelope import Event

PURGED_AT_A_TIME = 5_000
_MARGIN = timedelta(days=7)
"""On top of the outbox's own: clocks differ, and events were postponed."""

processed_events = Table(
    "processed_events",
    outbox.metadata,
    Column("event_id", Uuid, primary_key=True),
    Column("processed_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

# RETURNING, because SQLAlchemy reports no row count of an INSERT.
_RECORD = insert(processed_events).on_conflict_do_nothing().returning(processed_events.c.event_id)

_events = GivenRows("events", id=Uuid)
# In one order: two workers that have copies of the same events wait for each other then, and never both.
_RECORD_ALL = Prepared(
    insert(processed_events)
    .from_select(["event_id"], select(_events.rows.c.id).order_by(_events.rows.c.id))
    .on_conflict_do_nothing()
    .returning(processed_events.c.event_id)
)


async def mark_processed(tx: Transaction, event: Event) -> bool:
    """Insert the event's id into processed_events in the caller's transaction.

    False if it is there already: the caller must skip the effect.
    """
    return (await tx.execute(_RECORD, {"event_id": event.id})).scalar_one_or_none() is not None


async def mark_all_processed(tx: Transaction, events: Iterable[Event]) -> set[UUID]:
    """As `mark_processed`, for many events. Returns the ids of those that were not there: the effect of the others is skipped.

    If the caller takes other locks of these events too, it takes them afterwards.
    """
    recorded = await _RECORD_ALL.execute(tx, _events.values({"id": event.id} for event in events))
    return {row["event_id"] for row in recorded}


async def purge(tx: Transaction, oldest_at: datetime | None) -> int:
    """Remove records of events that cannot come again, and return how many: PURGED_AT_A_TIME when more may be left.

    An event comes again while its outbox row lives, which is `outbox.KEPT` after it was published and no longer; or when its
    dead letter is replayed, however old, so the record stays while there is one; or because a copy waits in the stream since
    then, so time is reckoned from the oldest entry (`oldest_at`) when the workers were away for long.
    """
    table = processed_events
    before = (func.least(func.now(), oldest_at) if oldest_at else func.now()) - (outbox.KEPT + _MARGIN)
    may_be_replayed = exists().where(dead_letters.c.event_id == table.c.event_id)
    past = select(table.c.event_id).where(table.c.processed_at < before, ~may_be_replayed).limit(PURGED_AT_A_TIME)
    return (await tx.execute(delete(table).where(table.c.event_id.in_(past)))).rowcount
