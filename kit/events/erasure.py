"""The record of erased people, which makes an erasure final.

Whoever erases a person records it first and deletes after that commit; whoever writes about a person asks in the transaction of the
write. A lock for each person orders the two: a writer that was told no has committed before the record exists, so the deletion sees
its rows, and every later writer is told yes, however old the event or token that it acts on.

Of the person only the id is kept, which is random and names nothing any more; and for good, for a replayed event may be of any age.
"""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import BigInteger, Column, DateTime, Table, Uuid, bindparam, func, select
from sqlalchemy.dialects.postgresql import insert

from kit.data.database import Transaction

from . import outbox

erased_subjects = Table(
    "erased_subjects",
    outbox.metadata,
    Column("subject_id", Uuid, primary_key=True),
    Column("erased_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

_LOCK_BITS = (1 << 63) - 1
"""The random end of a UUID, as much as a lock's name holds. Two people who shared it would only wait for each other."""

_lock = bindparam("lock", type_=BigInteger)
HOLD = func.pg_advisory_xact_lock_shared(_lock)
"""Waits for an erasure and holds off the next; `lock` is a `name_of`. For a statement that takes other locks as well."""

_HOLD_OFF = select(func.pg_advisory_xact_lock(_lock))
_HOLD = select(HOLD)
_FIND = select(erased_subjects.c.subject_id).where(erased_subjects.c.subject_id == bindparam("id"))


async def erase(tx: Transaction, subject_id: UUID) -> None:
    """Records the person as erased, once nobody is at writing about them. Delete in a later transaction."""
    await tx.execute(_HOLD_OFF, {"lock": name_of(subject_id)})
    await tx.execute(insert(erased_subjects).values(subject_id=subject_id).on_conflict_do_nothing())


async def is_erased(tx: Transaction, subject_id: UUID) -> bool:
    """Whether nothing may be written about the person any more. The answer holds until the transaction ends."""
    await tx.execute(_HOLD, {"lock": name_of(subject_id)})
    # A statement of its own: in one with the lock, it would see the table as it was before the wait.
    return (await tx.execute(_FIND, {"id": subject_id})).scalar_one_or_none() is not None


def name_of(subject_id: UUID) -> int:
    """Of the person's lock."""
    return subject_id.int & _LOCK_BITS
