"""What counts towards a person's quotas."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, DateTime, Integer, String, bindparam, cast, delete, func, insert, select
from sqlalchemy import Uuid as UuidType

from kit.data.database import Transaction
from kit.data.prepared import Prepared
from kit.events.erasure import HOLD, advisory_lock_key, erased_subjects

from ..model import COUNTED
from ..model.quotas import Usage
from ..tables import file_admissions, files

_LOCKS = 0x4649
"""The first key of these two-key advisory locks. An arbitrary constant that keeps them apart from other two-key locks."""

_LOCK = Prepared(
    select(
        HOLD,
        func.pg_advisory_xact_lock(
            bindparam("locks", _LOCKS, Integer), func.hashtext(bindparam("owner", type_=String))
        ),
    )
)

_owner = bindparam("owner", type_=UuidType)
_stored = (
    select(
        func.count().label("files"), cast(func.coalesce(func.sum(files.c.size), 0), BigInteger).label("stored_bytes")
    )
    .where(
        files.c.owner_id == _owner,
        files.c.state.in_([state.value for state in COUNTED]),
        files.c.deleted_at.is_(None),
    )
    .subquery()
)
_day = (
    select(
        func.count().label("files_of_day"),
        cast(func.coalesce(func.sum(file_admissions.c.size), 0), BigInteger).label("bytes_of_day"),
    )
    .where(
        file_admissions.c.owner_id == _owner,
        file_admissions.c.admitted_at > bindparam("day_began", type_=DateTime(timezone=True)),
    )
    .subquery()
)
_erased = select(func.count().label("erased")).where(erased_subjects.c.subject_id == _owner).subquery()
_USAGE = Prepared(select(_stored, _day, _erased))
_ADMIT = Prepared(insert(file_admissions), columns=("owner_id", "admitted_at", "size"))


async def lock(tx: Transaction, owner_id: UUID) -> None:
    """Serialize the transactions that create files of the owner, and hold off the owner's erasure, by advisory locks.

    Two owners whose keys collide only wait for each other.
    """
    await _LOCK.execute(tx, {"lock": advisory_lock_key(owner_id), "owner": str(owner_id)})


async def usage(tx: Transaction, owner_id: UUID, *, day_began: datetime) -> Usage | None:
    """Return what counts; None for an erased person. The answer holds until the transaction ends if it holds `lock`.

    A statement apart from the lock's: in one with it, it would see the tables as they were before the wait.
    """
    (row,) = await _USAGE.execute(tx, {"owner": owner_id, "day_began": day_began})
    if row["erased"]:
        return None
    return Usage(row["stored_bytes"], row["files"], row["bytes_of_day"], row["files_of_day"])


async def admissions_since(tx: Transaction, owner_id: UUID, day_began: datetime) -> Sequence[tuple[datetime, int]]:
    """Return when each file since then was created and its bytes, oldest first."""
    query = select(file_admissions.c.admitted_at, file_admissions.c.size).where(
        file_admissions.c.owner_id == owner_id, file_admissions.c.admitted_at > day_began
    )
    return [(row.admitted_at, row.size) for row in await tx.execute(query.order_by(file_admissions.c.admitted_at))]


async def admit(tx: Transaction, owner_id: UUID, size: int, *, now: datetime) -> None:
    """Record a file that is created now."""
    await _ADMIT.execute(tx, {"owner_id": owner_id, "admitted_at": now, "size": size})


async def forget(tx: Transaction, *, before: datetime) -> None:
    """Delete all people's admissions before the time."""
    await tx.execute(delete(file_admissions).where(file_admissions.c.admitted_at < before))


async def erase(tx: Transaction, owner_id: UUID) -> None:
    """Delete the owner's admissions."""
    await tx.execute(delete(file_admissions).where(file_admissions.c.owner_id == owner_id))
