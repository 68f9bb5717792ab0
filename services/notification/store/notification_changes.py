"""The numbered changes of each person's notifications.

A person's row in notification_heads is locked before their notifications are changed. So numbers are given in the order of the
commits and without a gap, and a reader that has seen number 5 knows by 7 that it has missed one. By another mark of number 5 it
knows that the database was restored from a backup, and that there may be changes which it has not seen.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    DateTime,
    Integer,
    Result,
    Text,
    Uuid,
    bindparam,
    cast,
    column,
    delete,
    func,
    insert,
    literal,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert as insert_into
from sqlalchemy.engine.row import RowMapping

from kit.data.database import Transaction

from ..model.notifications import Change, ChangeKind, ChangePosition, Head
from ..tables import notification_changes as changes
from ..tables import notification_heads as heads
from ..tables import notifications
from .notifications import notification_of

CHANNEL = "notification_changes"
"""Notified of each change, with the id of the person."""

# Frequent statements are built once, because SQLAlchemy takes longer to build one than to send it.

_new_head = insert_into(heads).values(number=0)
# Update even without a change, because the update locks the row.
_LOCK = _new_head.on_conflict_do_update(index_elements=["user_id"], set_={"number": heads.c.number})

_unread = (
    select(func.count())
    .select_from(notifications)
    .where(notifications.c.user_id == bindparam("user"), notifications.c.read_at.is_(None))
    .scalar_subquery()
)
_next = (
    update(heads)
    .where(heads.c.user_id == bindparam("user"))
    .values(number=heads.c.number + 1)
    .returning(heads.c.number)
    .cte("next")
)
_RECORD = (
    insert(changes)
    .from_select(
        ["user_id", "number", "change", "notification_id", "unread", "occurred_at", "before_at"],
        select(
            bindparam("user", type_=Uuid),
            _next.c.number,
            bindparam("kind", type_=Text),
            bindparam("notification", type_=Uuid),
            _unread,
            bindparam("now", type_=DateTime(timezone=True)),
            bindparam("before", type_=DateTime(timezone=True)),
        ),
    )
    .returning(
        changes.c.number,
        changes.c.mark,
        changes.c.unread,
        func.pg_notify(literal(CHANNEL), cast(changes.c.user_id, Text)),
    )
)

_number = select(heads.c.number).where(heads.c.user_id == bindparam("user")).scalar_subquery()
_mark = (
    select(changes.c.mark).where(changes.c.user_id == bindparam("user"), changes.c.number == _number).scalar_subquery()
)
_HEAD = select(func.coalesce(_number, 0).label("number"), _mark.label("mark"), _unread.label("unread"))

_wanted = (
    func.unnest(bindparam("people", type_=ARRAY(Uuid)), bindparam("numbers", type_=ARRAY(BigInteger)))
    .table_valued(column("user_id", Uuid), column("after", BigInteger))
    .render_derived("wanted")
)
_later = (
    select(changes)
    .where(changes.c.user_id == _wanted.c.user_id, changes.c.number > _wanted.c.after)
    .order_by(changes.c.number)
    .limit(bindparam("most", type_=Integer))
    .lateral("later")
)
_known = changes.alias("known")
_LATER = (
    select(
        _wanted.c.user_id.label("person"),
        func.coalesce(heads.c.number, 0).label("head"),
        _known.c.mark.label("mark_of_known"),
        _later.c.number,
        _later.c.mark,
        _later.c.change,
        _later.c.notification_id,
        _later.c.unread,
        _later.c.occurred_at,
        _later.c.before_at,
        notifications,
    )
    .select_from(
        _wanted.outerjoin(heads, heads.c.user_id == _wanted.c.user_id)
        .outerjoin(_known, (_known.c.user_id == _wanted.c.user_id) & (_known.c.number == _wanted.c.after))
        .outerjoin(_later, true())
        .outerjoin(notifications, notifications.c.id == _later.c.notification_id)
    )
    .order_by(_wanted.c.user_id, _later.c.number)
)


@dataclass(frozen=True, slots=True)
class Later:
    """What has changed for a person since a position."""

    head: int
    """The number of the latest change, whether or not it is among these."""
    mark: UUID | None
    """The mark of the change that has the position's number."""
    changes: Sequence[Change]

    def continues(self, position: ChangePosition) -> bool:
        """Whether these are all changes that follow the position, or the first of them: none was pruned, or lost in a restore."""
        number, numbers = position.number, [change.number for change in self.changes]
        dense = numbers == list(range(number + 1, number + 1 + len(numbers))) and (bool(numbers) or self.head == number)
        return dense and self.mark == position.mark


async def lock(tx: Transaction, user_id: UUID) -> None:
    """Lock the person's notifications until the transaction ends. To be called before they are changed."""
    await tx.execute(_LOCK, {"user_id": user_id})


async def record(
    tx: Transaction,
    user_id: UUID,
    kind: ChangeKind,
    now: datetime,
    *,
    notification_id: UUID | None = None,
    before: datetime | None = None,
) -> Head:
    """Number a change that has been made in this transaction under the lock, and wake the watchers when it commits."""
    values = {"user": user_id, "kind": kind, "notification": notification_id, "now": now, "before": before}
    return _head(await tx.execute(_RECORD, values))


async def head(tx: Transaction, user_id: UUID) -> Head:
    """The person's state, as one statement sees it."""
    return _head(await tx.execute(_HEAD, {"user": user_id}))


async def later(tx: Transaction, positions: Mapping[UUID, ChangePosition], most: int) -> dict[UUID, Later]:
    """For each person the changes after a position, at most `most` of them, as one statement sees them."""
    values = {"people": list(positions), "numbers": [each.number for each in positions.values()], "most": most}
    found: dict[UUID, tuple[int, UUID | None, list[Change]]] = {}
    for row in (await tx.execute(_LATER, values)).mappings():
        _, _, numbered = found.setdefault(row["person"], (row["head"], row["mark_of_known"], []))
        if row[_later.c.number] is not None:
            numbered.append(_change(row))
    return {person: Later(*of_person) for person, of_person in found.items()}


async def numbers(tx: Transaction, people: Collection[UUID]) -> dict[UUID, int]:
    """The number of each person's latest change; people without one are left out."""
    query = select(heads).where(heads.c.user_id == func.any(bindparam("people", list(people), type_=ARRAY(Uuid))))
    return {row.user_id: row.number for row in await tx.execute(query)}


async def prune(tx: Transaction, before: datetime, limit: int) -> int:
    """Delete some of the changes before the time, the oldest first, and return how many these were."""
    key = tuple_(changes.c.user_id, changes.c.number)
    oldest = (
        select(changes.c.user_id, changes.c.number)
        .where(changes.c.occurred_at < before)
        .order_by(changes.c.occurred_at)
        .limit(limit)
    )
    return (await tx.execute(delete(changes).where(key.in_(oldest)))).rowcount


def _head(found: Result[Any]) -> Head:
    row = found.one()
    return Head(ChangePosition(row.number, row.mark), row.unread)


def _change(row: RowMapping) -> Change:
    kind = ChangeKind(row[_later.c.change])
    shown = kind in (ChangeKind.ADDED, ChangeKind.UPDATED) and row[notifications.c.id] is not None
    values: dict[str, Any] = {each.name: row[each] for each in notifications.c}
    return Change(
        number=row[_later.c.number],
        mark=row[_later.c.mark],
        kind=kind,
        unread=row[_later.c.unread],
        occurred_at=row[_later.c.occurred_at],
        notification_id=row[_later.c.notification_id],
        before_at=row[_later.c.before_at],
        notification=notification_of(values) if shown else None,
    )
