"""What the version before `deliveries` recorded of mails. That version may still run beside this one."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import bindparam, delete, select

from kit.data.database import Transaction

from ..tables import mails

_UNFINISHED = ("WAITING", "SENDING")

_event = mails.c.event_id == bindparam("event")
_LOCK = select(mails.c.state, mails.c.attempts).where(_event).with_for_update()
_DELETE = delete(mails).where(_event)


@dataclass(frozen=True, slots=True)
class FormerMail:
    """A mail of the former version."""

    attempts: int
    final: bool
    unknown: bool
    """Its worker died while it was sending."""


async def lock(tx: Transaction, event_id: UUID) -> FormerMail | None:
    row = (await tx.execute(_LOCK, {"event": event_id})).one_or_none()
    return FormerMail(row.attempts, row.state not in _UNFINISHED, row.state == "SENDING") if row else None


async def remove(tx: Transaction, event_id: UUID) -> None:
    """Remove the record, which a row in `deliveries` replaces."""
    await tx.execute(_DELETE, {"event": event_id})
