"""Claims: what shows a file, and keeps it from being deleted by its owner."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from uuid import UUID

from sqlalchemy import ColumnElement, and_, case, delete, func, null, select
from sqlalchemy.dialects.postgresql import insert

from kit.data.database import Transaction

from ..tables import file_claims


async def add(
    tx: Transaction, holder: str, file_ids: Collection[UUID], *, now: datetime, expires_at: datetime | None
) -> None:
    """Insert claims of files that the caller has locked. One that is confirmed stays so; without `expires_at` all become so."""
    if not file_ids:
        return
    rows = [{"file_id": file_id, "holder": holder, "created_at": now, "expires_at": expires_at} for file_id in file_ids]
    adding = insert(file_claims).values(rows)
    until = file_claims.c.expires_at
    await tx.execute(
        adding.on_conflict_do_update(
            index_elements=["file_id", "holder"],
            set_={"expires_at": case((until.is_(None), null()), else_=adding.excluded.expires_at)},
        )
    )


async def remove(tx: Transaction, holder: str, file_ids: Collection[UUID]) -> set[UUID]:
    """Delete claims of files that the caller has locked. Returns the files that were claimed for good."""
    statement = delete(file_claims).where(file_claims.c.holder == holder, file_claims.c.file_id.in_(file_ids))
    rows = await tx.execute(statement.returning(file_claims.c.file_id, file_claims.c.expires_at))
    return {row.file_id for row in rows if row.expires_at is None}


async def claimed(tx: Transaction, file_ids: Collection[UUID], now: datetime) -> set[UUID]:
    """Return those of the files that something claims, tentatively included."""
    query = select(file_claims.c.file_id).where(file_claims.c.file_id.in_(file_ids), ~_lapsed(now)).distinct()
    return set((await tx.execute(query)).scalars())


async def tentative(tx: Transaction, holder: str, file_ids: Collection[UUID], *, now: datetime) -> bool:
    """Whether the holder has a claim of one of the files that is neither confirmed nor has ended."""
    query = select(file_claims.c.file_id).where(
        file_claims.c.holder == holder, file_claims.c.file_id.in_(file_ids), file_claims.c.expires_at > now
    )
    return (await tx.execute(query.limit(1))).first() is not None


async def held_by_others(
    tx: Transaction, holder: str, file_ids: Collection[UUID], most: int, *, now: datetime
) -> set[UUID]:
    """Return those of the files that `most` other holders claim, or more."""
    query = (
        select(file_claims.c.file_id)
        .where(file_claims.c.file_id.in_(file_ids), file_claims.c.holder != holder, ~_lapsed(now))
        .group_by(file_claims.c.file_id)
        .having(func.count() >= most)
    )
    return set((await tx.execute(query)).scalars())


async def forget_lapsed(tx: Transaction, *, before: datetime) -> int:
    """Delete the tentative claims that ended before the time; return their number."""
    statement = delete(file_claims).where(file_claims.c.expires_at < before)
    return (await tx.execute(statement)).rowcount


def _lapsed(now: datetime) -> ColumnElement[bool]:
    return and_(file_claims.c.expires_at.is_not(None), file_claims.c.expires_at <= now)
