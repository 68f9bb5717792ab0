"""Whom people block and mute: two tables of the same form."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256
from uuid import UUID

from sqlalchemy import BigInteger, bindparam, delete, func, select
from sqlalchemy.dialects.postgresql import insert

from kit.data.database import Transaction
from kit.data.paging import PageRequest

from ..model import ListedProfile, Stance
from ..tables import blocks, mutes, profiles
from .visibility import SEEN, seen_of

_TABLES = {Stance.BLOCK: blocks, Stance.MUTE: mutes}
_HOLD_PAIR = select(func.pg_advisory_xact_lock(bindparam("pair", type_=BigInteger)))


async def hold_pair(tx: Transaction, one: UUID, other: UUID) -> None:
    """Until the transaction ends, hold off others that hold the same two people, in either order."""
    digest = sha256(b"".join(sorted((one.bytes, other.bytes)))).digest()
    await tx.execute(_HOLD_PAIR, {"pair": int.from_bytes(digest[:8], signed=True)})


async def add(
    tx: Transaction, stance: Stance, user_id: UUID, subject_id: UUID, *, stance_id: UUID, created_at: datetime
) -> bool:
    """Insert the stance. False if the person has taken it already."""
    table = _TABLES[stance]
    adding = insert(table).values(user_id=user_id, subject_id=subject_id, id=stance_id, created_at=created_at)
    return (await tx.execute(adding.on_conflict_do_nothing().returning(table.c.id))).scalar_one_or_none() is not None


async def remove(tx: Transaction, stance: Stance, user_id: UUID, subject_id: UUID) -> bool:
    """Delete the stance. False if the person had not taken it."""
    table = _TABLES[stance]
    removing = delete(table).where(table.c.user_id == user_id, table.c.subject_id == subject_id)
    return (await tx.execute(removing)).rowcount > 0


async def remove_some(tx: Transaction, stance: Stance, user_id: UUID, most: int) -> Sequence[UUID]:
    """Delete some of the person's stances, and return towards whom they were; nothing when none is left."""
    table = _TABLES[stance]
    some = select(table.c.subject_id).where(table.c.user_id == user_id).order_by(table.c.subject_id).limit(most)
    removing = delete(table).where(table.c.user_id == user_id, table.c.subject_id.in_(some))
    return list(await tx.scalars(removing.returning(table.c.subject_id)))


async def page(tx: Transaction, stance: Stance, user_id: UUID, request: PageRequest) -> Sequence[ListedProfile]:
    """Towards whom the person took the stance, the latest first: the page, and one more if there is a next page.

    People whom the person does not see now are left out.
    """
    table = _TABLES[stance]
    query = (
        SEEN.join_from(profiles, table, table.c.subject_id == profiles.c.user_id)
        .add_columns(table.c.id)
        .where(table.c.user_id == bindparam("owner"))
        .order_by(table.c.id.desc())
        .limit(request.size + 1)
    )
    if request.before:
        query = query.where(table.c.id < request.before)
    rows = (await tx.execute(query, {"owner": user_id, "viewer": user_id})).mappings()
    return [ListedProfile(row["id"], seen_of(dict(row))) for row in rows]
