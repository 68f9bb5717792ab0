"""When mails went out to people, as far back as a throttle looks. Mails about security are not counted."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import bindparam, delete, select
from sqlalchemy.dialects.postgresql import insert

from kit.data.database import Transaction

from ..tables import counted_mails

# Built once, because every mail runs them.
_of_person = counted_mails.c.user_id == bindparam("person")
_of_others = counted_mails.c.event_id != bindparam("event")
_FIND = select(counted_mails.c.sent_at).where(_of_person, _of_others)
_old = counted_mails.c.sent_at <= bindparam("before")
_forgotten = delete(counted_mails).where(_of_person, _of_others, _old).cte("forgotten")
_counted = insert(counted_mails).values(
    user_id=bindparam("person"), event_id=bindparam("event"), sent_at=bindparam("now")
)
_COUNT = _counted.on_conflict_do_update(
    index_elements=["user_id", "event_id"], set_={"sent_at": _counted.excluded.sent_at}
).add_cte(_forgotten)


async def find(tx: Transaction, user_id: UUID, event_id: UUID) -> Sequence[datetime]:
    """When mails about other events went out to the person lately."""
    return list((await tx.execute(_FIND, {"person": user_id, "event": event_id})).scalars())


async def count(tx: Transaction, user_id: UUID, event_id: UUID, now: datetime, *, forget_before: datetime) -> None:
    """Count the event's mail, once however often it is tried, and forget what no throttle looks at any more."""
    await tx.execute(_COUNT, {"person": user_id, "event": event_id, "now": now, "before": forget_before})
