"""What rows say about objects, by their keys."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import and_, select, union_all

from kit.data.database import Transaction

from ..model import State
from ..tables import file_renditions, files
from .removal import ENDED


async def needed_among(tx: Transaction, object_keys: Collection[str]) -> tuple[set[str], set[str]]:
    """Of the keys of uploaded objects, those whose own bytes some row needs, and those of which a row may have renditions.

    A deleted file counts: its objects are removed with it, not by the sweep.
    """
    query = select(files.c.object_key, files.c.stored, files.c.state).where(files.c.object_key.in_(object_keys))
    found = (await tx.execute(query)).all()
    return {row.object_key for row in found if row.stored}, {row.object_key for row in found if row.state not in ENDED}


async def uploads_in_use(tx: Transaction, object_keys: Collection[str]) -> set[tuple[str, str]]:
    """The uploads by parts that pending files go on with: object key and the store's name of the upload."""
    query = select(files.c.object_key, files.c.upload_id).where(
        files.c.object_key.in_(object_keys), files.c.upload_id.is_not(None)
    )
    return {(row.object_key, row.upload_id) for row in await tx.execute(query)}


_READY = and_(files.c.state == State.READY, files.c.deleted_at.is_(None))
_OWN = select(files.c.object_key).where(_READY, files.c.rendered.is_(False))
_MADE = select(file_renditions.c.object_key).join(files, files.c.id == file_renditions.c.file_id).where(_READY)


async def expected_between(
    tx: Transaction, after: str, upto: str, limit: int, *, ready_before: datetime
) -> Sequence[str]:
    """The keys, in their order, at which ready files must have objects."""
    settled = files.c.completed_at < ready_before
    own = _OWN.where(settled, files.c.object_key > after, files.c.object_key <= upto)
    made = _MADE.where(settled, file_renditions.c.object_key > after, file_renditions.c.object_key <= upto)
    both = union_all(own, made).subquery()
    return list((await tx.execute(select(both.c.object_key).order_by(both.c.object_key).limit(limit))).scalars())


async def expected_among(tx: Transaction, keys: Collection[str]) -> set[str]:
    """Those of the keys at which ready files must have objects."""
    own, made = _OWN.where(files.c.object_key.in_(keys)), _MADE.where(file_renditions.c.object_key.in_(keys))
    return set((await tx.execute(union_all(own, made))).scalars())
