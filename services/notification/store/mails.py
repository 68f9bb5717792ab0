"""What the version before `deliveries` recorded of mails. That version may still run beside this one."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from sqlalchemy import Uuid, bindparam, delete, exists, select

from kit.data.database import Transaction
from kit.data.given_rows import GivenRows
from kit.data.prepared import Prepared

from ..model.deliveries import Channel, DeliveryState
from ..model.records import StepRecord
from ..tables import deliveries, mails

FORMER_VERSION = "FORMER_VERSION"
"""Detail of steps about a mail that the version before `deliveries` sent or began to send."""

_UNFINISHED = ("WAITING", "SENDING")
_STATES = {
    "SENDING": DeliveryState.SENDING,
    "SENT": DeliveryState.SENT,
    "REFUSED": DeliveryState.FAILED,
    "EXPIRED": DeliveryState.EXPIRED,
    "UNKNOWN": DeliveryState.UNKNOWN,
}
_NUMBERS = re.compile(r"[\d. ]+")

_event = mails.c.event_id == bindparam("event")
_events = GivenRows("events", id=Uuid)
_LOCK = Prepared(
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
    rows = await _LOCK.execute(tx, _events.values({"id": each} for each in event_ids))
    return {
        row["event_id"]: FormerMail(row["attempts"], row["state"] not in _UNFINISHED, row["state"] == "SENDING")
        for row in rows
    }


async def steps(tx: Transaction, event_ids: Collection[UUID]) -> Sequence[tuple[UUID, StepRecord]]:
    """What is known of these events' mails, as steps. Those that have a delivery too are left out: it tells more."""
    taken_over = exists().where(deliveries.c.event_id == mails.c.event_id, deliveries.c.channel == Channel.EMAIL)
    query = select(mails).where(mails.c.event_id.in_(event_ids), ~taken_over).order_by(mails.c.created_at)
    return [step for row in await tx.execute(query) for step in _steps_of(row)]


def _steps_of(row: Any) -> Iterator[tuple[UUID, StepRecord]]:
    begun = StepRecord(Channel.EMAIL, "", row.user_id, row.created_at, DeliveryState.QUEUED, FORMER_VERSION)
    yield row.event_id, begun
    if state := _STATES.get(row.state):
        # The words of mail servers often quote addresses.
        numbers = row.error if _NUMBERS.fullmatch(row.error) else ""
        detail = f"{FORMER_VERSION} {numbers}".strip()
        yield row.event_id, replace(begun, occurred_at=row.changed_at, decision=state, detail=detail)


async def remove(tx: Transaction, event_id: UUID) -> None:
    """Remove the record, which a row in `deliveries` replaces."""
    await tx.execute(_DELETE, {"event": event_id})
