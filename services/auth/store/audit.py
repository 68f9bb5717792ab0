"""The audit log. The database itself refuses to change entries, or to remove them early (migration 0002)."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import delete, insert, update
from uuid_utils.compat import uuid7

from services.kit.database import Transaction

from ..model import AuditEntry
from ..tables import audit_entries

# Built once, for every sign-in runs it.
_APPEND = insert(audit_entries)


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
    await tx.execute(_APPEND, values)


async def erase_person(tx: Transaction, user_id: UUID) -> None:
    """What happened stays, from where goes: addresses and agents are personal data of an account that is no more."""
    theirs = (audit_entries.c.subject_id == user_id) | (audit_entries.c.actor_id == user_id)
    await tx.execute(update(audit_entries).where(theirs).values(ip="", user_agent=""))


async def delete_older(tx: Transaction, before: datetime) -> int:
    return (await tx.execute(delete(audit_entries).where(audit_entries.c.occurred_at < before))).rowcount
