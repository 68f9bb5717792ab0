"""Erasure of one person's rows."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import LargeBinary, delete, func, literal, select, tuple_

from kit.data.database import Transaction
from kit.events import dead_letter_store

from ..tables import (
    counted_mails,
    deliveries,
    delivery_steps,
    digest_items,
    mails,
    notification_changes,
    notification_heads,
    notifications,
    preferences,
    suppressions,
    webhooks,
)

_TABLES = (
    notifications,
    notification_changes,
    notification_heads,
    deliveries,
    delivery_steps,
    mails,
    preferences,
    counted_mails,
    digest_items,
    suppressions,
    webhooks,
)


async def erase_some(tx: Transaction, user_id: UUID, limit: int) -> int:
    """Delete some of the person's rows, at most `limit` of each table. Returns how many, 0 when none is left."""
    erased = 0
    for table in _TABLES:
        key = tuple(table.primary_key.columns)
        some = select(*key).where(table.c.user_id == user_id).limit(limit)
        erased += (await tx.execute(delete(table).where(tuple_(*key).in_(some)))).rowcount
    return erased


async def erase_dead_letters(tx: Transaction, user_id: UUID) -> None:
    """Delete dead letters that name the person: as the key, or within the event."""
    named = (
        func.position(literal(str(user_id).encode(), LargeBinary).op("IN")(dead_letter_store.dead_letters.c.event)) > 0
    )
    await tx.execute(delete(dead_letter_store.dead_letters).where(named))
