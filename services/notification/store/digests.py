"""Which notices wait for which digest. The digest and the notices are rows of `deliveries`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Row, bindparam, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from kit.data.database import Transaction

from ..model.deliveries import Channel, DeliveryState, Step
from ..tables import deliveries, digest_items
from .deliveries import add_step


@dataclass(frozen=True, slots=True)
class DigestProgress:
    """How far the delivery of a digest has come."""

    digest_id: UUID
    state: DeliveryState
    reason: str
    answer: str
    attempts: int
    due_at: datetime

    @property
    def is_open(self) -> bool:
        """Whether no worker has begun to collect its notices."""
        return self.state is DeliveryState.QUEUED and self.attempts == 0


@dataclass(frozen=True, slots=True)
class WaitingNotice:
    event_id: UUID
    kind: str
    event: bytes
    created_at: datetime


_digest = (deliveries.c.event_id == digest_items.c.digest_id) & (deliveries.c.channel == Channel.EMAIL)
_progress = (
    deliveries.c.event_id,
    *(deliveries.c[name] for name in ("state", "reason", "answer", "attempts", "due_at")),
)
_OF_EVENT = (
    select(*_progress)
    .join(digest_items, _digest)
    .where(digest_items.c.event_id == bindparam("event"))
    .with_for_update(of=deliveries)
)
_LOCK = (
    select(*_progress)
    .where(deliveries.c.event_id == bindparam("digest"), deliveries.c.channel == Channel.EMAIL)
    .with_for_update()
)


async def lock_digest_of(tx: Transaction, event_id: UUID) -> DigestProgress | None:
    """Lock the digest that the event's notice waits for. None if it waits for none."""
    row = (await tx.execute(_OF_EVENT, {"event": event_id})).one_or_none()
    return _progress_of(row) if row else None


async def lock(tx: Transaction, digest_id: UUID) -> DigestProgress:
    """Lock a digest that exists."""
    return _progress_of((await tx.execute(_LOCK, {"digest": digest_id})).one())


async def put(tx: Transaction, digest_id: UUID, event_id: UUID, user_id: UUID, *, expires_at: datetime) -> None:
    """Have the event's notice wait for the digest, and live at least until `expires_at`."""
    values = {"event_id": event_id, "digest_id": digest_id, "user_id": user_id}
    await tx.execute(insert(digest_items).values(values))
    mail = (deliveries.c.event_id == event_id) & (deliveries.c.channel == Channel.EMAIL)
    later = func.greatest(deliveries.c.expires_at, expires_at)
    await tx.execute(update(deliveries).where(mail).values(expires_at=later))


async def remove(tx: Transaction, event_id: UUID) -> None:
    """Have the event's notice wait for no digest any more."""
    await tx.execute(delete(digest_items).where(digest_items.c.event_id == event_id))


async def kinds(tx: Transaction, digest_id: UUID) -> Mapping[str, int]:
    """How many notices of which kinds wait for the digest."""
    number = func.count().label("number")
    query = select(deliveries.c.kind, number).where(_waits_for(digest_id)).group_by(deliveries.c.kind)
    return {row.kind: row.number for row in await tx.execute(query)}


async def first(tx: Transaction, digest_id: UUID, most: int) -> Sequence[WaitingNotice]:
    """The notices that wait for the digest, oldest first."""
    columns = (deliveries.c.event_id, deliveries.c.kind, deliveries.c.event, deliveries.c.created_at)
    query = select(*columns).where(_waits_for(digest_id)).order_by(deliveries.c.created_at, deliveries.c.id)
    return [WaitingNotice(*row) for row in await tx.execute(query.limit(most))]


async def release(tx: Transaction, digest_id: UUID, kinds_of_notices: Collection[str], now: datetime) -> None:
    """Have the notices of these kinds wait for the digest no longer, and be judged anew at once."""
    chosen = _waits_for(digest_id) & deliveries.c.kind.in_(kinds_of_notices)
    released = update(deliveries).where(chosen).values(due_at=now).returning(deliveries.c.event_id).cte("released")
    await tx.execute(delete(digest_items).where(digest_items.c.event_id.in_(select(released.c.event_id))))


async def leave_out(tx: Transaction, digest_id: UUID, event_ids: Collection[UUID], reason: str, now: datetime) -> None:
    """End notices that wait for the digest and are not to be told any more. The caller has locked the person's preferences."""
    chosen = _waits_for(digest_id) & deliveries.c.event_id.in_(event_ids)
    ended = {
        "state": DeliveryState.SUPPRESSED,
        "reason": reason,
        "event": None,
        "leased_until": None,
        "changed_at": now,
    }
    left_out = update(deliveries).where(chosen).values(ended).returning(deliveries.c.event_id, deliveries.c.user_id)
    for row in (await tx.execute(left_out)).all():
        await remove(tx, row.event_id)
        await add_step(tx, Step(row.event_id, Channel.EMAIL, row.user_id, now, DeliveryState.SUPPRESSED, reason))


def _waits_for(digest_id: UUID) -> ColumnElement[bool]:
    waiting = select(digest_items.c.event_id).where(digest_items.c.digest_id == digest_id)
    return (
        (deliveries.c.channel == Channel.EMAIL)
        & (deliveries.c.state == DeliveryState.QUEUED)
        & deliveries.c.event_id.in_(waiting)
    )


def _progress_of(row: Row[Any]) -> DigestProgress:
    return DigestProgress(row.event_id, DeliveryState(row.state), row.reason, row.answer, row.attempts, row.due_at)
