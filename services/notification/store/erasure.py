"""Erasure of one person's rows."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import LargeBinary, delete, func, literal, select

from kit.data.database import Transaction
from kit.events import dead_letter_store

from ..tables import mails, notifications


async def erase_some(tx: Transaction, user_id: UUID, limit: int) -> int:
    """Delete some of the person's notifications and mails. Returns how many, 0 when none is left."""
    some_notifications = select(notifications.c.id).where(notifications.c.user_id == user_id).limit(limit)
    some_mails = select(mails.c.event_id).where(mails.c.user_id == user_id).limit(limit)
    erased = await tx.execute(delete(notifications).where(notifications.c.id.in_(some_notifications)))
    unsent = await tx.execute(delete(mails).where(mails.c.event_id.in_(some_mails)))
    return erased.rowcount + unsent.rowcount


async def erase_dead_letters(tx: Transaction, user_id: UUID) -> None:
    """Delete dead letters that name the person: as the key, or within the event."""
    named = (
        func.position(literal(str(user_id).encode(), LargeBinary).op("IN")(dead_letter_store.dead_letters.c.event)) > 0
    )
    await tx.execute(delete(dead_letter_store.dead_letters).where(named))
