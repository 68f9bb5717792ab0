"""Every SQL statement of the notification service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from uuid import UUID

from sqlalchemy import LargeBinary, bindparam, delete, func, insert, literal, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.engine.row import RowMapping

from kit.data.database import Transaction
from kit.data.paging import PageRequest
from kit.events import inbox

from .model import MailState, Notification, NotificationType, Template
from .tables import mails, notifications

# Statements that every mail needs are built once: to build one takes longer than to send it.

_INSERT_NOTIFICATION = insert(notifications)

_upsert_mail = upsert(mails).values(state=MailState.WAITING, attempts=0, error="")
# An update in any case, for it locks the row.
_LOCK_MAIL = _upsert_mail.on_conflict_do_update(
    index_elements=["event_id"], set_={"user_id": func.coalesce(mails.c.user_id, _upsert_mail.excluded.user_id)}
).returning(mails.c.state)

_mail = update(mails).where(mails.c.event_id == bindparam("event"))
_BEGIN_SENDING = _mail.values(
    state=MailState.SENDING, changed_at=bindparam("now"), attempts=mails.c.attempts + 1
).returning(mails.c.attempts)
_SETTLE_MAIL = _mail.where(mails.c.attempts == bindparam("number")).values(
    state=bindparam("outcome"), changed_at=bindparam("now"), error=bindparam("why")
)
_HAND_BACK_MAIL = _mail.where(mails.c.attempts == bindparam("number"), mails.c.state == MailState.SENDING).values(
    state=MailState.WAITING, changed_at=bindparam("now"), error=""
)


async def insert_notification(tx: Transaction, notification: Notification) -> None:
    await tx.execute(_INSERT_NOTIFICATION, asdict(notification))


async def page(tx: Transaction, user_id: UUID, request: PageRequest) -> Sequence[Notification]:
    """Newest first, one more than asked for when there are more."""
    query = (
        select(notifications)
        .where(notifications.c.user_id == user_id)
        .order_by(notifications.c.id.desc())
        .limit(request.size + 1)
    )
    if request.before:
        query = query.where(notifications.c.id < request.before)
    return [_notification(row) for row in (await tx.execute(query)).mappings()]


async def lock_mail(
    tx: Transaction, event_id: UUID, template: Template, now: datetime, *, user_id: UUID | None
) -> MailState:
    """The mail's state; it begins in WAITING."""
    values = {"event_id": event_id, "user_id": user_id, "template": template, "created_at": now, "changed_at": now}
    return MailState((await tx.execute(_LOCK_MAIL, values)).scalar_one())


async def begin_sending(tx: Transaction, event_id: UUID, now: datetime) -> int:
    """The number of the attempt that begins."""
    return int((await tx.execute(_BEGIN_SENDING, {"event": event_id, "now": now})).scalar_one())


async def settle_mail(
    tx: Transaction, event_id: UUID, attempt: int, state: MailState, now: datetime, *, error: str
) -> None:
    """Does nothing when a later attempt has begun: its outcome is the one that counts."""
    why = error.replace("\0", "")[:500]
    values = {"event": event_id, "number": attempt, "outcome": state, "now": now, "why": why}
    await tx.execute(_SETTLE_MAIL, values)


async def hand_back_mail(tx: Transaction, event_id: UUID, attempt: int, now: datetime) -> None:
    """Does nothing when somebody else has looked at it since: who finds it in SENDING decides what that means."""
    await tx.execute(_HAND_BACK_MAIL, {"event": event_id, "number": attempt, "now": now})


async def set_mail(tx: Transaction, event_id: UUID, state: MailState, now: datetime) -> None:
    await tx.execute(update(mails).where(mails.c.event_id == event_id).values(state=state, changed_at=now))


async def erase_some(tx: Transaction, user_id: UUID, limit: int) -> int:
    """Deletes some of the person's notifications and mails, and answers how many; 0 when none are left."""
    some_notifications = select(notifications.c.id).where(notifications.c.user_id == user_id).limit(limit)
    some_mails = select(mails.c.event_id).where(mails.c.user_id == user_id).limit(limit)
    erased = await tx.execute(delete(notifications).where(notifications.c.id.in_(some_notifications)))
    unsent = await tx.execute(delete(mails).where(mails.c.event_id.in_(some_mails)))
    return erased.rowcount + unsent.rowcount


async def erase_dead_letters(tx: Transaction, user_id: UUID) -> None:
    """Deletes those that name the person anywhere: as the key, or within the event."""
    named = func.position(literal(str(user_id).encode(), LargeBinary).op("IN")(inbox.dead_letters.c.event)) > 0
    await tx.execute(delete(inbox.dead_letters).where(named))


def _notification(row: RowMapping) -> Notification:
    return Notification(
        id=row["id"],
        user_id=row["user_id"],
        type=NotificationType(row["type"]),
        title=row["title"],
        body=row["body"],
        story_id=row["story_id"],
        created_at=row["created_at"],
        read_at=row["read_at"],
    )
