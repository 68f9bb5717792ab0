"""Suppressed addresses."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import ColumnElement, Integer, LargeBinary, Uuid, bindparam, case, delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine.row import RowMapping

from kit.data.database import Transaction
from kit.data.paging import PageRequest

from ..model.suppressions import Suppression, SuppressionReason, SuppressionSource
from ..tables import deliveries, suppressions

_new = insert(suppressions)
_GRAVITY = {SuppressionReason.MAILBOX: 0, SuppressionReason.COMPLAINT: 1, SuppressionReason.NO_ADDRESS: 2}
"""A mailbox may work again, a complaint stands until an administrator lifts it, and nobody reads what has no address."""


def _gravity(reason: ColumnElement[str]) -> ColumnElement[int]:
    return case(_GRAVITY, value=reason)


_ADD = _new.on_conflict_do_update(
    index_elements=["address_digest"],
    set_={
        "user_id": func.coalesce(suppressions.c.user_id, _new.excluded.user_id),
        "reason": _new.excluded.reason,
        "event_id": _new.excluded.event_id,
        "code": _new.excluded.code,
        "source": _new.excluded.source,
    },
    where=_gravity(_new.excluded.reason) > _gravity(suppressions.c.reason),
).returning(suppressions.c.id)

# Asked for every mail, so built once.
_FIND = select(suppressions).where(suppressions.c.address_digest == bindparam("digest", type_=LargeBinary))
_FIND_FOR = _FIND.add_cte(
    deliveries.update()
    .where(
        deliveries.c.id == bindparam("delivery", type_=Uuid),
        deliveries.c.attempts == bindparam("number", type_=Integer),
    )
    .values(address_digest=bindparam("digest", type_=LargeBinary))
    .cte("noted")
)
_ADOPT = (
    suppressions.update()
    .where(suppressions.c.id == bindparam("suppression"), suppressions.c.user_id.is_(None))
    .values(user_id=bindparam("person"))
)


async def add(tx: Transaction, suppression: Suppression) -> bool:
    """Suppress the address. One that is suppressed stays so, under the graver reason. False: nothing changed."""
    values = {
        "id": suppression.id,
        "address_digest": suppression.address_digest,
        "user_id": suppression.user_id,
        "event_id": suppression.event_id,
        "reason": suppression.reason,
        "code": suppression.code,
        "source": suppression.source,
        "created_at": suppression.created_at,
    }
    return (await tx.execute(_ADD, values)).first() is not None


async def find(tx: Transaction, address_digest: bytes) -> Suppression | None:
    row = (await tx.execute(_FIND, {"digest": address_digest})).mappings().one_or_none()
    return _suppression(row) if row else None


async def find_for(tx: Transaction, delivery_id: UUID, attempt: int, address_digest: bytes) -> Suppression | None:
    """As `find`, and note the digest with the delivery, unless a later attempt has begun."""
    values = {"delivery": delivery_id, "number": attempt, "digest": address_digest}
    row = (await tx.execute(_FIND_FOR, values)).mappings().one_or_none()
    return _suppression(row) if row else None


async def adopt(tx: Transaction, suppression_id: UUID, user_id: UUID) -> None:
    """Name the person of an address that was suppressed without one, so that the person's erasure finds it."""
    await tx.execute(_ADOPT, {"suppression": suppression_id, "person": user_id})


async def page(tx: Transaction, user_id: UUID | None, request: PageRequest) -> Sequence[Suppression]:
    """Suppressions, newest first: one more than `size` if there are more. Of one person if `user_id` is given."""
    query = select(suppressions).order_by(suppressions.c.id.desc()).limit(request.size + 1)
    if user_id:
        query = query.where(suppressions.c.user_id == user_id)
    if request.before:
        query = query.where(suppressions.c.id < request.before)
    return [_suppression(row) for row in (await tx.execute(query)).mappings()]


async def remove(tx: Transaction, suppression_id: UUID) -> Suppression | None:
    """Delete one and return it; None if there is none."""
    query = delete(suppressions).where(suppressions.c.id == suppression_id).returning(suppressions)
    row = (await tx.execute(query)).mappings().one_or_none()
    return _suppression(row) if row else None


async def remove_address(tx: Transaction, address_digest: bytes) -> None:
    await tx.execute(delete(suppressions).where(suppressions.c.address_digest == address_digest))


async def remove_nameless(tx: Transaction, before: datetime) -> int:
    """Delete those without a person that are older. Returns how many."""
    old = delete(suppressions).where(suppressions.c.user_id.is_(None), suppressions.c.created_at < before)
    return (await tx.execute(old)).rowcount


def _suppression(row: RowMapping) -> Suppression:
    return Suppression(
        id=row["id"],
        address_digest=row["address_digest"],
        user_id=row["user_id"],
        event_id=row["event_id"],
        reason=SuppressionReason(row["reason"]),
        code=row["code"],
        source=SuppressionSource(row["source"]),
        created_at=row["created_at"],
    )
