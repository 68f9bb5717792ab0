"""The audit log, append-only: the database refuses to change entries, or to delete them early (migration 0002)."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import delete, insert, select, update
from uuid_utils.compat import uuid7

from kit.data.database import Transaction
from kit.data.prepared import Prepared

from ..model import AuditEntry
from ..tables import audit_entries, audit_erasures
from .batches import MOST, delete_some

# Built once, because every sign-in runs it.
_APPEND = Prepared(
    insert(audit_entries),
    columns=("id", "occurred_at", "action", "reason", "actor_id", "subject_id", "session_id", "ip", "user_agent"),
)


async def append(tx: Transaction, entry: AuditEntry, now: datetime) -> None:
    values = {
        "id": uuid7(),
        "occurred_at": now,
        "action": entry.action,
        "reason": entry.reason,
        "actor_id": entry.actor_id,
        "subject_id": entry.subject_id,
        "session_id": entry.session_id,
        "ip": entry.origin.ip,
        "user_agent": entry.origin.user_agent,
    }
    await _APPEND.execute(tx, values)


async def erase_person(tx: Transaction, user_id: UUID) -> None:
    """Erase addresses and agents of a deleted account's entries, which are personal data; the rest of an entry stays.

    Erases a part of a long history here, the rest in `erase_some`.
    """
    if await _erase(tx, user_id) == MOST:
        await tx.execute(insert(audit_erasures).values(subject_id=user_id))


async def erase_some(tx: Transaction) -> int:
    """Go on with an erasure that was too long for the deletion's transaction. Returns the number of rows, 0 when none is left."""
    query = select(audit_erasures.c.subject_id).limit(1).with_for_update(skip_locked=True)
    subject_id = (await tx.execute(query)).scalar_one_or_none()
    if subject_id is None:
        return 0
    if await _erase(tx, subject_id) < MOST:
        await tx.execute(delete(audit_erasures).where(audit_erasures.c.subject_id == subject_id))
    return MOST


async def _erase(tx: Transaction, user_id: UUID) -> int:
    theirs = (audit_entries.c.subject_id == user_id) | (audit_entries.c.actor_id == user_id)
    telling = theirs & ((audit_entries.c.ip != "") | (audit_entries.c.user_agent != ""))
    some = select(audit_entries.c.id).where(telling).limit(MOST)
    statement = update(audit_entries).where(audit_entries.c.id.in_(some)).values(ip="", user_agent="")
    return (await tx.execute(statement)).rowcount


async def delete_older(tx: Transaction, before: datetime) -> int:
    return await delete_some(tx, audit_entries, audit_entries.c.occurred_at < before)
