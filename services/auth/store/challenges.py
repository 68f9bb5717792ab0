"""The challenges of codes, except registrations."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import delete, select
from sqlalchemy import insert as insert_into

from kit.data.database import Transaction

from ..model import Challenge, Purpose
from ..tables import challenges
from .batches import delete_some


async def insert(tx: Transaction, challenge: Challenge) -> None:
    statement = insert_into(challenges).values(
        id=challenge.id,
        purpose=challenge.purpose,
        user_id=challenge.user_id,
        email=challenge.email,
        proof_epoch=challenge.proof_epoch,
        expires_at=challenge.expires_at,
    )
    await tx.execute(statement)


async def find(tx: Transaction, challenge_id: UUID, purpose: Purpose, now: datetime) -> Challenge | None:
    query = select(challenges).where(
        challenges.c.id == challenge_id, challenges.c.purpose == purpose, challenges.c.expires_at > now
    )
    row = (await tx.execute(query)).mappings().one_or_none()
    if row is None:
        return None
    return Challenge(
        id=row["id"],
        purpose=Purpose(row["purpose"]),
        user_id=row["user_id"],
        email=row["email"],
        expires_at=row["expires_at"],
        proof_epoch=row["proof_epoch"],
    )


async def use(tx: Transaction, challenge_id: UUID) -> bool:
    """Mark the challenge as used. False if it was used before."""
    return (await tx.execute(delete(challenges).where(challenges.c.id == challenge_id))).rowcount == 1


async def delete_expired(tx: Transaction, now: datetime) -> int:
    return await delete_some(tx, challenges, challenges.c.expires_at <= now)
