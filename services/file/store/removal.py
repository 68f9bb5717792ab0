"""The rows whose objects are to be removed, and those that have outlived their use."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Select, and_, or_, select, update

from kit.data.database import Transaction

from ..model import Reason, State
from ..tables import files
from . import files as rows


@dataclass(frozen=True, slots=True)
class Held:
    """What the object store may hold of a file."""

    id: UUID
    object_key: str
    upload_id: str | None
    expires_at: datetime
    """When the last signed upload of it has expired."""


ENDED = (State.REJECTED, State.EXPIRED)
_HELD = select(files.c.id, files.c.object_key, files.c.upload_id, files.c.expires_at)
USELESS = and_(
    files.c.stored, or_(files.c.state.in_(ENDED), and_(files.c.state == State.READY, files.c.rendered.is_(True)))
)
"""The uploaded bytes serve nothing any more: the file is refused, or is shown by its renditions alone."""


async def expire(tx: Transaction, limit: int, *, now: datetime) -> int:
    """Expire pending files whose time is over; return their number."""
    due = (
        select(files.c.id)
        .where(files.c.state == State.PENDING, files.c.expires_at <= now, files.c.deleted_at.is_(None))
        .order_by(files.c.expires_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    statement = (
        update(files)
        .where(files.c.id.in_(due))
        .values(state=State.EXPIRED, reason=Reason.UPLOAD_EXPIRED, completed_at=now, revision=files.c.revision + 1)
        .returning(rows.TELL)
    )
    return len((await tx.execute(statement)).all())


async def useless(tx: Transaction, limit: int) -> Sequence[Held]:
    """Files of which the store still has bytes that serve nothing."""
    return await _held(
        tx, _HELD.where(USELESS, files.c.deleted_at.is_(None)).order_by(files.c.completed_at).limit(limit)
    )


async def useless_of(tx: Transaction, file_id: UUID) -> Sequence[Held]:
    return await _held(tx, _HELD.where(USELESS, files.c.id == file_id, files.c.deleted_at.is_(None)))


async def cleared(tx: Transaction, file_ids: Collection[UUID]) -> None:
    """Record that the store has none of the uploaded bytes any more."""
    await tx.execute(update(files).where(files.c.id.in_(file_ids)).values(stored=False, upload_id=None))


async def hidden(tx: Transaction, limit: int, *, deleted_before: datetime) -> Sequence[Held]:
    """Deleted files whose bytes are still to be removed."""
    return await _held(tx, _HELD.where(files.c.deleted_at < deleted_before).order_by(files.c.deleted_at).limit(limit))


async def hidden_file(tx: Transaction, file_id: UUID) -> Sequence[Held]:
    """The file, if it is deleted."""
    return await _held(tx, _HELD.where(files.c.id == file_id, files.c.deleted_at.is_not(None)))


async def of_owner(tx: Transaction, owner_id: UUID, limit: int) -> Sequence[Held]:
    """Files of the owner, deleted ones included."""
    return await _held(tx, _HELD.where(files.c.owner_id == owner_id).order_by(files.c.id).limit(limit))


async def visible_of_owner(tx: Transaction, owner_id: UUID, limit: int) -> Sequence[UUID]:
    """Lock files of the owner that are not deleted yet."""
    query = (
        select(files.c.id)
        .where(files.c.owner_id == owner_id, files.c.deleted_at.is_(None))
        .order_by(files.c.id)
        .limit(limit)
        .with_for_update()
    )
    return list((await tx.execute(query)).scalars())


async def ended_before(tx: Transaction, limit: int, *, before: datetime) -> Sequence[UUID]:
    """Refused and expired files of which nothing is stored and that have been told for long enough."""
    query = (
        select(files.c.id)
        .where(files.c.state.in_(ENDED), files.c.completed_at < before, files.c.stored.is_(False))
        .order_by(files.c.completed_at)
        .limit(limit)
    )
    return list((await tx.execute(query)).scalars())


async def _held(tx: Transaction, query: Select[Any]) -> Sequence[Held]:
    return [Held(row.id, row.object_key, row.upload_id, row.expires_at) for row in await tx.execute(query)]
