"""Deliveries that wait for a time that follows from their person's preferences."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import and_, or_, update

from kit.data.database import Transaction

from ..model import Kind
from ..model.deliveries import DeliveryState
from ..model.preferences import Reason
from ..tables import deliveries
from .deliveries import notify_workers

_row = deliveries.c


async def judge_anew(tx: Transaction, user_id: UUID, now: datetime) -> None:
    """Have all that waits for the person be judged anew at once, after a change of their preferences, whom the caller has locked.

    Digests themselves stay as they are: what waits for them leaves them if need be.
    """
    held = or_(
        _row.reason.in_((Reason.QUIET_HOURS, Reason.THROTTLED)),
        and_(_row.reason.in_((Reason.DAILY_DIGEST, Reason.WEEKLY_DIGEST)), _row.kind != Kind.DIGEST),
    )
    waiting = (_row.user_id == user_id, _row.state == DeliveryState.QUEUED, _row.due_at > now, held)
    if (await tx.execute(update(deliveries).where(*waiting).values(due_at=now))).rowcount:
        await notify_workers(tx)
