"""Profiles, as their owners have them."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.dialects.postgresql import insert as insert_into
from sqlalchemy.exc import IntegrityError

from kit.data.database import Transaction
from kit.data.prepared import Prepared

from ..model import MessagePolicy, Profile, State
from ..tables import profiles
from .visibility import profile_of

_OWN = select(profiles).where(profiles.c.user_id == bindparam("user_id"))
_FIND = Prepared(_OWN)
_LOCK = Prepared(_OWN.with_for_update(key_share=True))
_KEEP = Prepared(_OWN.with_for_update(read=True))


async def insert(tx: Transaction, user_id: UUID, handle: str, created_at: datetime) -> bool:
    """Insert an empty, open profile. False, without effect, if the person has a row already or the handle is another's.

    Waits for a transaction that is inserting either.
    """
    statement = insert_into(profiles).values(
        user_id=user_id,
        state=State.ACTIVE,
        handle=handle,
        display_name="",
        bio="",
        private=False,
        message_policy=MessagePolicy.EVERYONE,
        created_at=created_at,
    )
    inserted = await tx.execute(statement.on_conflict_do_nothing().returning(profiles.c.user_id))
    return inserted.scalar_one_or_none() is not None


async def find(tx: Transaction, user_id: UUID) -> Profile | None:
    row = await _FIND.one_or_none(tx, {"user_id": user_id})
    return profile_of(row) if row else None


async def lock(tx: Transaction, user_id: UUID) -> Profile | None:
    """Lock the row: changes of one profile, and the steps of its erasure, happen one after the other."""
    row = await _LOCK.one_or_none(tx, {"user_id": user_id})
    return profile_of(row) if row else None


async def keep(tx: Transaction, user_id: UUID) -> Profile | None:
    """Keep the row as it is until the transaction ends, without holding off others that keep it."""
    row = await _KEEP.one_or_none(tx, {"user_id": user_id})
    return profile_of(row) if row else None


async def save(tx: Transaction, profile: Profile) -> bool:
    """Store what has changed. False if the handle is another person's; the transaction is of no use then.

    Waits for a transaction that is about to take or leave the handle.
    """
    values = {
        "state": profile.state,
        "handle": profile.handle or None,
        "display_name": profile.display_name,
        "bio": profile.bio,
        "private": profile.private,
        "message_policy": profile.message_policy,
        "avatar_file_id": profile.avatar_file_id,
        "avatar_showing_id": profile.avatar_showing_id,
    }
    try:
        await tx.execute(update(profiles).where(profiles.c.user_id == profile.user_id).values(values))
    except IntegrityError:
        return False
    return True


async def forget_avatar(tx: Transaction, file_id: UUID) -> None:
    """Let the profile that shows the file show none."""
    await tx.execute(
        update(profiles).where(profiles.c.avatar_file_id == file_id).values(avatar_file_id=None, avatar_showing_id=None)
    )


async def remove(tx: Transaction, user_id: UUID) -> None:
    await tx.execute(delete(profiles).where(profiles.c.user_id == user_id))
