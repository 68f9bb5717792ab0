"""Deliveries to one webhook, as its owner sees them and has them sent again."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import func, update

from kit.data.database import Transaction

from ..model.deliveries import UNFINISHED, DeliveryState
from ..model.records import DeliveryRecord
from ..tables import deliveries
from .deliveries import notify_workers

_row = deliveries.c


async def hasten(tx: Transaction, waiting: DeliveryRecord, now: datetime) -> None:
    """Have a delivery that waits for its next attempt tried at once. Changes nothing of one that a worker holds."""
    free = func.coalesce(_row.leased_until < func.now(), True)
    due = update(deliveries).where(_row.id == waiting.id, _row.state == DeliveryState.QUEUED, _row.due_at > now, free)
    if (await tx.execute(due.values(due_at=now))).rowcount:
        await notify_workers(tx, waiting.channel)


async def forget_content(tx: Transaction, webhook_id: UUID) -> None:
    """Delete the content of what has ended: a webhook that is deleted is sent nothing again."""
    ended = _row.target == str(webhook_id), _row.target != "", _row.event.is_not(None), _row.state.not_in(UNFINISHED)
    await tx.execute(update(deliveries).where(*ended).values(event=None))
