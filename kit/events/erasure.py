"""The record of erased people, which makes an erasure final.

An erasure records the person first (`erase`) and deletes their rows after that commit. A writer asks `is_erased` in the transaction
of its write. An advisory lock for each person orders the two: a writer that was answered False has committed before the record
exists, so the deletion sees its rows; every later writer is answered True, however old the event or token that it acts on.

Only the person's id is kept, which is random and names nothing any more. It is kept for good, because a replayed event may be of
any age.
"""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

from sqlalchemy import BigInteger, Column, DateTime, Table, Uuid, bindparam, func, select
from sqlalchemy.dialects.postgresql import insert

from kit.data.database import Transaction
from kit.data.given_rows import GivenRows
from kit.data.prepared import Prepared

from . import outbox

erased_subjects = Table(
    "erased_subjects",
    outbox.metadata,
    Column("subject_id", Uuid, primary_key=True),
    Column("erased_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

_LOCK_BITS = (1 << 63) - 1
"""As much of a UUID as an advisory-lock key holds. Two people who shared these bits would only wait for each other."""

_lock = bindparam("lock", type_=BigInteger)
HOLD = func.pg_advisory_xact_lock_shared(_lock)
"""Waits for an erasure and holds off the next; `lock` is an `advisory_lock_key`. For a statement that takes other locks as well."""

_HOLD_OFF = select(func.pg_advisory_xact_lock(_lock))
_HOLD = select(HOLD)
_FIND = select(erased_subjects.c.subject_id).where(erased_subjects.c.subject_id == bindparam("id"))

_locks, _subjects = GivenRows("locks", number=BigInteger), GivenRows("subjects", id=Uuid)
_HOLD_ALL = Prepared(select(func.count(func.pg_advisory_xact_lock_shared(_locks.rows.c.number))))
_FIND_ALL = Prepared(
    select(erased_subjects.c.subject_id).where(erased_subjects.c.subject_id.in_(select(_subjects.rows.c.id)))
)


async def erase(tx: Transaction, subject_id: UUID) -> None:
    """Record the person as erased, once no transaction is writing about them. Delete their rows in a later transaction."""
    await tx.execute(_HOLD_OFF, {"lock": advisory_lock_key(subject_id)})
    await tx.execute(insert(erased_subjects).values(subject_id=subject_id).on_conflict_do_nothing())


async def is_erased(tx: Transaction, subject_id: UUID) -> bool:
    """True if nothing may be written about the person any more. The answer holds until the transaction ends."""
    await tx.execute(_HOLD, {"lock": advisory_lock_key(subject_id)})
    # A statement of its own: in one with the lock, it would see the table as it was before the wait.
    return (await tx.execute(_FIND, {"id": subject_id})).scalar_one_or_none() is not None


async def erased_among(tx: Transaction, subject_ids: Collection[UUID]) -> set[UUID]:
    """As `is_erased`, for many people: those of them about whom nothing may be written any more."""
    if not subject_ids:
        return set()
    await _HOLD_ALL.execute(tx, _locks.values({"number": advisory_lock_key(each)} for each in subject_ids))
    found = await _FIND_ALL.execute(tx, _subjects.values({"id": each} for each in subject_ids))
    return {row["subject_id"] for row in found}


def advisory_lock_key(subject_id: UUID) -> int:
    """The low 63 bits of the UUID, as a Postgres advisory-lock key."""
    return subject_id.int & _LOCK_BITS
