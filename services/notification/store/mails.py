"""Mails and their states."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import bindparam, func, update
from sqlalchemy.dialects.postgresql import insert

from kit.data.database import Transaction

from ..model import MailState, Template
from ..tables import mails

# Built once, because every mail runs them and building one takes longer than sending it to Postgres.

_upsert = insert(mails).values(state=MailState.WAITING, attempts=0, error="")
# Update even without a change, because the update locks the row.
_LOCK = _upsert.on_conflict_do_update(
    index_elements=["event_id"], set_={"user_id": func.coalesce(mails.c.user_id, _upsert.excluded.user_id)}
).returning(mails.c.state)

_mail = update(mails).where(mails.c.event_id == bindparam("event"))
_BEGIN_SENDING = _mail.values(
    state=MailState.SENDING, changed_at=bindparam("now"), attempts=mails.c.attempts + 1
).returning(mails.c.attempts)
_SETTLE = _mail.where(mails.c.attempts == bindparam("number")).values(
    state=bindparam("outcome"), changed_at=bindparam("now"), error=bindparam("why")
)
_HAND_BACK = _mail.where(mails.c.attempts == bindparam("number"), mails.c.state == MailState.SENDING).values(
    state=MailState.WAITING, changed_at=bindparam("now"), error=""
)


async def lock(
    tx: Transaction, event_id: UUID, template: Template, now: datetime, *, user_id: UUID | None
) -> MailState:
    """Lock the mail's row, inserted in WAITING if it is new, and return its state."""
    values = {"event_id": event_id, "user_id": user_id, "template": template, "created_at": now, "changed_at": now}
    return MailState((await tx.execute(_LOCK, values)).scalar_one())


async def begin_sending(tx: Transaction, event_id: UUID, now: datetime) -> int:
    """Begin an attempt and return its number."""
    return int((await tx.execute(_BEGIN_SENDING, {"event": event_id, "now": now})).scalar_one())


async def settle(tx: Transaction, event_id: UUID, attempt: int, state: MailState, now: datetime, *, error: str) -> None:
    """Record the outcome, unless a later attempt has begun, whose outcome counts instead."""
    why = error.replace("\0", "")[:500]
    values = {"event": event_id, "number": attempt, "outcome": state, "now": now, "why": why}
    await tx.execute(_SETTLE, values)


async def hand_back(tx: Transaction, event_id: UUID, attempt: int, now: datetime) -> None:
    """Return the mail to WAITING, unless another worker has found it in SENDING and decided what that means."""
    await tx.execute(_HAND_BACK, {"event": event_id, "number": attempt, "now": now})


async def set_state(tx: Transaction, event_id: UUID, state: MailState, now: datetime) -> None:
    await tx.execute(update(mails).where(mails.c.event_id == event_id).values(state=state, changed_at=now))
