"""What administrators did to webhooks of the installation."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import delete, insert, select, update

from kit.data.database import Transaction

from ..model.webhooks import Act
from ..tables import webhook_acts, webhooks

_row = webhook_acts.c


async def add(tx: Transaction, webhook_id: UUID, *, actor_id: UUID, act: Act, detail: str, now: datetime) -> None:
    values = {"webhook_id": webhook_id, "actor_id": actor_id, "act": act, "detail": detail, "occurred_at": now}
    await tx.execute(insert(webhook_acts).values(values))


async def forget_actor(tx: Transaction, actor_id: UUID) -> None:
    """Remove an erased administrator from what they did."""
    await tx.execute(update(webhook_acts).where(_row.actor_id == actor_id).values(actor_id=None))


async def prune(tx: Transaction, before: datetime) -> None:
    """Delete acts from before the time on webhooks that do not exist any more."""
    existing = select(webhooks.c.id).where(webhooks.c.id == _row.webhook_id).exists()
    await tx.execute(delete(webhook_acts).where(_row.occurred_at < before, ~existing))
