"""What the version before `deliveries` recorded of mails. That version may still run beside this one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Uuid, bindparam, delete, select

from kit.data.database import Transaction
from kit.data.given_rows import GivenRows

from ..tables import mails

_UNFINISHED = ("WAITING", "SENDING")

_event = mails.c.event_id == bindparam("event")
_events = GivenRows("events", id=Uuid)
_LOCK = (
    select(mails.c.event_id, mails.c.state, mails.c.attempts)
    .where(mails.c.event_id.in_(select(_events.rows.c.id)))
    .order_by(mails.c.event_id)
    .with_for_update(of=mails)
)
_DELETE = delete(mails).where(_event)


@dataclass(frozen=True, slots=True)
class FormerMail:
    """A mail of the former version."""

    attempts: int
    final: bool
    unknown: bool
    """Its worker died while it was sending."""


async def lock(tx: Transaction, event_ids: Collection[UUID]) -> Mapping[UUID, FormerMail]:
    """Lock the records of those of the events that have one."""
    rows = await tx.execute(_LOCK, _events.values({"id": each} for each in event_ids))
    return {
        row.event_id: FormerMail(row.attempts, row.state not in _UNFINISHED, row.state == "SENDING") for row in rows
    }


async def remove(tx: Transaction, event_id: UUID) -> None:
    """Remove the record, which a row in `deliveries` replaces."""
    await tx.execute(_DELETE, {"event": event_id})
