"""The tokens that stop email changes."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from uuid import UUID

from sqlalchemy import delete, exists, select
from sqlalchemy import insert as insert_into

from kit.data.database import Transaction

from ..model import EmailChangeStop
from ..tables import email_change_stops as stops
from .batches import delete_some


async def insert(tx: Transaction, stop: EmailChangeStop) -> None:
    await tx.execute(insert_into(stops).values(asdict(stop)))


async def find(tx: Transaction, token_digest: bytes, now: datetime) -> EmailChangeStop | None:
    query = select(stops).where(stops.c.token_digest == token_digest, stops.c.expires_at > now)
    row = (await tx.execute(query)).mappings().one_or_none()
    return EmailChangeStop(**row) if row else None


async def mailed_since(tx: Transaction, user_id: UUID, email: str, since: datetime) -> bool:
    """Whether a token that is still valid was mailed to the address for the account since that time."""
    there = (stops.c.user_id == user_id) & (stops.c.email == email) & (stops.c.created_at > since)
    return bool((await tx.execute(select(exists().where(there)))).scalar_one())


async def use(tx: Transaction, stop: EmailChangeStop) -> bool:
    """Use up the token, and void those of the account's later changes: they went to addresses that it should never have had.

    False if it was used or voided before. The caller holds the account's lock.
    """
    later = (stops.c.user_id == stop.user_id) & (stops.c.created_at >= stop.created_at)
    used = await tx.execute(delete(stops).where(later).returning(stops.c.id))
    return stop.id in set(used.scalars())


async def delete_expired(tx: Transaction, now: datetime) -> int:
    return await delete_some(tx, stops, stops.c.expires_at <= now)
