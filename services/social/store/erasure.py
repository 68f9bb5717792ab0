"""Erasure of one person's rows."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import Column, LargeBinary, Table, delete, func, literal, select, tuple_

from kit.data.database import Transaction
from kit.events import outbox
from kit.events.dead_letter_store import dead_letters

from ..tables import blocks, handle_changes, mutes

_ROWS: tuple[tuple[Table, Column[UUID]], ...] = (
    (blocks, blocks.c.user_id),
    (blocks, blocks.c.subject_id),
    (mutes, mutes.c.user_id),
    (mutes, mutes.c.subject_id),
    (handle_changes, handle_changes.c.user_id),
)


async def erase_some(tx: Transaction, user_id: UUID, most: int) -> int:
    """Delete some rows of one kind about the person, at most `most`. Returns how many, 0 when none is left of any kind.

    Of one kind: the erasures of two people who mute each other would each hold the row that the other one waits for.
    """
    for table, person in _ROWS:
        key = tuple(table.primary_key.columns)
        some = select(*key).where(person == user_id).limit(most)
        if erased := (await tx.execute(delete(table).where(tuple_(*key).in_(some)))).rowcount:
            return erased
    return 0


async def erase_events(tx: Transaction, user_id: UUID) -> None:
    """Delete published events whose key names the person, alone or in a pair, and dead letters that name them.

    Unpublished events stay: they happened, and their receivers wait for them.
    """
    events = outbox.table.c
    named = func.strpos(events.key, str(user_id)) > 0
    await tx.execute(delete(outbox.table).where(events.published_at.is_not(None), named))
    within = func.position(literal(str(user_id).encode(), LargeBinary).op("IN")(dead_letters.c.event)) > 0
    await tx.execute(delete(dead_letters).where(within))
