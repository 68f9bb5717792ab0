"""Pending registrations, whose accounts do not exist yet."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import delete, func, select, update
from sqlalchemy import insert as insert_into

from kit.data.database import Transaction

from ..model import Registration, canonical_email
from ..tables import registrations
from .batches import delete_some
from .users import profile_of, profile_values


async def insert(tx: Transaction, registration: Registration) -> None:
    statement = insert_into(registrations).values(
        id=registration.id,
        **profile_values(registration.profile),
        password_hash=registration.password_hash,
        created_at=registration.created_at,
        expires_at=registration.expires_at,
    )
    await tx.execute(statement)


async def find(tx: Transaction, registration_id: UUID, now: datetime) -> Registration | None:
    query = select(registrations).where(registrations.c.id == registration_id, registrations.c.expires_at > now)
    row = (await tx.execute(query)).mappings().one_or_none()
    if row is None:
        return None
    return Registration(
        id=row["id"],
        profile=profile_of(row),
        password_hash=row["password_hash"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        usernames_refused=tuple(row["usernames_refused"]),
    )


async def note_refused_username(tx: Transaction, registration_id: UUID, username: str) -> None:
    """Record the name in the registration's row, so that a loss of data in Redis allows no unlimited tries of names."""
    refused = registrations.c.usernames_refused
    statement = update(registrations).where(registrations.c.id == registration_id, refused.all_() != username)
    await tx.execute(statement.values(usernames_refused=func.array_append(refused, username)))


async def extend(tx: Transaction, registration_id: UUID, expires_at: datetime) -> bool:
    """Move the registration's expiry. False if it was completed meanwhile."""
    statement = update(registrations).where(registrations.c.id == registration_id).values(expires_at=expires_at)
    return (await tx.execute(statement)).rowcount == 1


async def delete_of(tx: Transaction, email: str) -> None:
    """Delete every registration of the address."""
    await tx.execute(delete(registrations).where(registrations.c.email_canonical == canonical_email(email)))


async def delete_expired(tx: Transaction, now: datetime) -> int:
    return await delete_some(tx, registrations, registrations.c.expires_at <= now)
