"""The transactional outbox: an event exists exactly if the change that it tells of was committed."""

from __future__ import annotations

from datetime import timedelta

from google.protobuf.message import Message
from sqlalchemy import (
    CTE,
    BigInteger,
    Column,
    ColumnElement,
    DateTime,
    FromClause,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    Uuid,
    bindparam,
    case,
    delete,
    func,
    insert,
    select,
    text,
)
from uuid_utils.compat import uuid7

from kit.data.database import Transaction
from kit.data.prepared import Prepared
from kit.runtime import tracing

from .envelope import VERSION

CHANNEL = "outbox"
"""NOTIFY wakes a relay that sleeps; the payload is empty, so Postgres folds many into one."""

ASLEEP = (0x4F42, 0)
"""Numbers of the advisory lock that a relay holds while it sleeps; transactions that add rows share it while none does."""

KEPT = timedelta(days=7)
"""How long a published event is kept, because Redis may lose it; so it may be published again as late as that."""

metadata = MetaData()

table = Table(
    "outbox",
    metadata,
    Column("position", BigInteger, Identity(always=True), primary_key=True),
    Column("id", Uuid, nullable=False, unique=True),
    Column("key", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("traceparent", Text, nullable=False),
    Column("occurred_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("published_at", DateTime(timezone=True)),
    # The relay looks every second, and most rows are published ones.
    Index("outbox_unpublished", "key", "position", postgresql_where=text("published_at IS NULL")),
    # An erasure removes the events of its person or thing, published or not.
    Index("outbox_by_key", "key"),
)


_WAKE = case((~func.pg_try_advisory_xact_lock_shared(*ASLEEP), func.pg_notify(CHANNEL, "")))
"""Notifies only a relay that sleeps (see `relay_sleep`): transactions that notify are committed one by one, each with an fsync."""

COLUMNS = ("id", "key", "type", "version", "payload", "traceparent")
_ADD = Prepared(insert(table).returning(_WAKE), columns=COLUMNS)


async def add(tx: Transaction, message: Message, *, key: object) -> None:
    """Writes the event into the caller's transaction. Events of one key are published in the order they were written."""
    await _ADD.execute(tx, dict(zip(COLUMNS, values_of(message, key=key).values(), strict=True)))


def addition(changed: FromClause) -> CTE:
    """Writes the event of `values_of` if `changed` has a row, as a part of the statement that makes the change."""
    values = select(*(bindparam(f"event_{name}", type_=table.c[name].type) for name in COLUMNS)).select_from(changed)
    return insert(table).from_select(COLUMNS, values).returning(_WAKE).cte("event")


def additions(changed: FromClause, given: FromClause, of_one: ColumnElement[bool]) -> CTE:
    """As `addition`, for many: writes the event of each row of `given`, which has the `values_of`, that joins `changed`."""
    values = select(*(given.c[f"event_{name}"] for name in COLUMNS)).join_from(changed, given, of_one)
    return insert(table).from_select(COLUMNS, values).returning(_WAKE).cte("event")


def values_of(message: Message, *, key: object) -> dict[str, object]:
    """The values that a statement with `addition` takes for the event."""
    return {
        "event_id": uuid7(),
        "event_key": str(key),
        "event_type": message.DESCRIPTOR.full_name,
        "event_version": VERSION,
        "event_payload": message.SerializeToString(),
        "event_traceparent": tracing.traceparent(),
    }


async def forget(tx: Transaction, *, key: object) -> None:
    """Remove published events of the key. Unpublished ones stay: they happened, and their receivers wait for them."""
    await tx.execute(delete(table).where(table.c.key == str(key), table.c.published_at.is_not(None)))
