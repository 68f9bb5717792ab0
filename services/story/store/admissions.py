"""Admissions: the requests that count towards quotas, and the statement that records one more."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, Boolean, DateTime, Integer, String, Uuid, bindparam, column, delete, func, select
from sqlalchemy.dialects.postgresql import insert

from kit.data.database import Transaction
from kit.data.prepared import Prepared, Row
from kit.events.erasure import HOLD, advisory_lock_key

from ..model import Demand, Limits
from ..tables import admissions

LOCKS = 0x5354
"""The first key of these two-key advisory locks. An arbitrary constant that keeps them apart from other two-key locks."""


demanded = select(
    func.story_demand(
        bindparam("person", type_=Uuid),
        bindparam("erasure_lock", type_=BigInteger),
        bindparam("locks", LOCKS, Integer),
        *(bindparam(name, type_=Integer) for name in ("most", "a_day", "backlog")),
    ).table_valued(
        column("unfinished", BigInteger),
        column("earliest_of_day", DateTime(timezone=True)),
        column("queued", BigInteger),
        column("erased", Boolean),
        name="demanded",
    )
)
"""Takes the person's locks, as `lock` does, and then finds their demand; takes the values of `person`."""

_ADMIT = Prepared(
    demanded.add_cte(
        insert(admissions)
        .values(owner_id=bindparam("person", type_=Uuid), admitted_at=bindparam("now", type_=DateTime(timezone=True)))
        .cte("admitted")
    )
)

_LOCK = Prepared(
    select(
        HOLD,
        func.pg_advisory_xact_lock(
            bindparam("locks", LOCKS, Integer), func.hashtext(bindparam("owner_id", type_=String))
        ),
    )
)


async def lock(tx: Transaction, owner_id: UUID) -> None:
    """Serialize the transactions that admit stories of the owner, and hold off the owner's erasure, by advisory locks.

    Two owners whose keys collide only wait for each other.
    """
    await _LOCK.execute(tx, {"lock": advisory_lock_key(owner_id), "owner_id": str(owner_id)})


async def admit(tx: Transaction, owner_id: UUID, limits: Limits, now: datetime) -> Demand:
    """Record an admission and return the demand before it. The caller refuses it by rolling back."""
    (row,) = await _ADMIT.execute(tx, person(owner_id, limits) | {"now": now})
    return demand_of(row)


def person(owner_id: UUID, limits: Limits) -> dict[str, object]:
    """The values of `demanded`."""
    return {
        "person": owner_id,
        "erasure_lock": advisory_lock_key(owner_id),
        "most": limits.unfinished,
        "a_day": limits.a_day,
        "backlog": limits.backlog,
    }


def demand_of(row: Row) -> Demand:
    """The demand in a row of `demanded`."""
    return Demand(row["unfinished"], row["earliest_of_day"], row["queued"], row["erased"])


async def forget(tx: Transaction, *, before: datetime) -> None:
    """Delete all people's admissions before the time."""
    await tx.execute(delete(admissions).where(admissions.c.admitted_at < before))


async def erase(tx: Transaction, owner_id: UUID) -> None:
    """Delete the owner's admissions."""
    await tx.execute(delete(admissions).where(admissions.c.owner_id == owner_id))
