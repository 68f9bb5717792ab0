"""Notifications inside the application."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.engine.row import RowMapping

from kit.data.database import Transaction
from kit.data.paging import PageRequest

from ..model import Kind, Notification
from ..tables import notifications

_INSERT = notifications.insert()
"""Built once, because building it takes longer than sending it to Postgres."""


async def insert(tx: Transaction, notification: Notification) -> None:
    await tx.execute(_INSERT, asdict(notification))


async def page(tx: Transaction, user_id: UUID, request: PageRequest) -> Sequence[Notification]:
    """The person's notifications, newest first: one more than `size` if there are more."""
    query = (
        select(notifications)
        .where(notifications.c.user_id == user_id)
        .order_by(notifications.c.id.desc())
        .limit(request.size + 1)
    )
    if request.before:
        query = query.where(notifications.c.id < request.before)
    return [_notification(row) for row in (await tx.execute(query)).mappings()]


def _notification(row: RowMapping) -> Notification:
    return Notification(
        id=row["id"],
        user_id=row["user_id"],
        type=Kind(row["type"]),
        title=row["title"],
        body=row["body"],
        story_id=row["story_id"],
        created_at=row["created_at"],
        read_at=row["read_at"],
    )
