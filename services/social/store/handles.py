"""Former handles, which are reserved for a time, and when people changed theirs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import delete, exists, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from kit.data.database import Transaction

from ..tables import former_handles, handle_changes


async def take(tx: Transaction, digest: bytes, user_id: UUID, now: datetime) -> bool:
    """End the reservation of a handle that the person takes. False if it is reserved for somebody else, or for nobody.

    To be called once the handle is the person's in `profiles`: whoever left it has committed its reservation by then.
    """
    row = former_handles.c
    ended = delete(former_handles).where(row.digest == digest, or_(row.owner_id == user_id, row.free_at <= now))
    await tx.execute(ended)
    return not (await tx.execute(select(exists().where(row.digest == digest)))).scalar_one()


async def reserve(tx: Transaction, digest: bytes, user_id: UUID | None, free_at: datetime) -> None:
    """Reserve a handle that its owner leaves; for nobody if `user_id` is None."""
    adding = insert(former_handles).values(digest=digest, owner_id=user_id, free_at=free_at)
    await tx.execute(
        adding.on_conflict_do_update(index_elements=["digest"], set_={"owner_id": user_id, "free_at": free_at})
    )


async def disown(tx: Transaction, user_id: UUID) -> None:
    """Let the person's former handles be nobody's for what is left of their time."""
    await tx.execute(update(former_handles).where(former_handles.c.owner_id == user_id).values(owner_id=None))


async def changes(tx: Transaction, user_id: UUID, since: datetime) -> Sequence[datetime]:
    """When the person changed their handle after `since`, the latest first."""
    row = handle_changes.c
    query = select(row.changed_at).where(row.user_id == user_id, row.changed_at > since).order_by(row.changed_at.desc())
    return list(await tx.scalars(query))


async def record_change(tx: Transaction, user_id: UUID, changed_at: datetime) -> None:
    await tx.execute(insert(handle_changes).values(user_id=user_id, changed_at=changed_at))


async def forget(tx: Transaction, *, free_before: datetime, changed_before: datetime) -> None:
    """Delete reservations and changes that count no more."""
    await tx.execute(delete(former_handles).where(former_handles.c.free_at < free_before))
    await tx.execute(delete(handle_changes).where(handle_changes.c.changed_at < changed_before))
