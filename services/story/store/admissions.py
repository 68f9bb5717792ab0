"""Admissions: the requests that count towards quotas, and the statement that records one more."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import DateTime, Integer, ScalarSelect, Select, String, Uuid, bindparam, delete, exists, func, select
from sqlalchemy.dialects.postgresql import insert

from kit.data.database import Transaction
from kit.data.prepared import Prepared
from kit.events.erasure import HOLD, advisory_lock_key, erased_subjects

from ..model import Demand, Limits, State
from ..tables import admissions, stories
from .stories import UNFINISHED

_LOCKS = 0x5354
"""The first key of these two-key advisory locks. An arbitrary constant that keeps them apart from other two-key locks."""


def _count(rows: Select[Any]) -> ScalarSelect[int]:
    """Count the rows of a query with a LIMIT, so that Postgres reads no more rows than the limit."""
    return select(func.count()).select_from(rows.subquery()).scalar_subquery()


_owner = bindparam("owner", type_=Uuid)
_ADMIT = Prepared(
    select(
        _count(
            select(stories.c.id)
            .where(stories.c.owner_id == _owner, stories.c.state.in_(UNFINISHED))
            .limit(bindparam("most", type_=Integer))
        ),
        select(admissions.c.admitted_at)
        .where(admissions.c.owner_id == _owner)
        .order_by(admissions.c.admitted_at.desc())
        .offset(bindparam("a_day", type_=Integer) - 1)
        .limit(1)
        .scalar_subquery(),
        _count(select(stories.c.id).where(stories.c.state == State.QUEUED).limit(bindparam("backlog", type_=Integer))),
        exists().where(erased_subjects.c.subject_id == _owner),
    ).add_cte(
        insert(admissions)
        .values(owner_id=_owner, admitted_at=bindparam("now", type_=DateTime(timezone=True)))
        .cte("admitted")
    )
)

_LOCK = Prepared(
    select(
        HOLD,
        func.pg_advisory_xact_lock(
            bindparam("locks", _LOCKS, Integer), func.hashtext(bindparam("owner_id", type_=String))
        ),
    )
)


async def lock(tx: Transaction, owner_id: UUID) -> None:
    """Serialize the transactions that admit stories of the owner, and hold off the owner's erasure, by advisory locks.

    Two owners whose keys collide only wait for each other.
    """
    await _LOCK.execute(tx, {"lock": advisory_lock_key(owner_id), "owner_id": str(owner_id)})


async def admit(tx: Transaction, owner_id: UUID, limits: Limits, now: datetime) -> Demand:
    """Record an admission and return the demand before it. The caller refuses it by rolling back.

    One statement saves round trips, because every request takes this path.
    """
    values = {
        "owner": owner_id,
        "now": now,
        "most": limits.unfinished,
        "a_day": limits.a_day,
        "backlog": limits.backlog,
    }
    (row,) = await _ADMIT.execute(tx, values)
    return Demand(*row.values())


async def forget(tx: Transaction, *, before: datetime) -> None:
    """Delete all people's admissions before the time."""
    await tx.execute(delete(admissions).where(admissions.c.admitted_at < before))


async def erase(tx: Transaction, owner_id: UUID) -> None:
    """Delete the owner's admissions."""
    await tx.execute(delete(admissions).where(admissions.c.owner_id == owner_id))
