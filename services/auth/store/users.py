"""Accounts and their passwords."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Uuid, any_, bindparam, case, or_, select
from sqlalchemy import delete as delete_from
from sqlalchemy import update as update_table
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import insert as insert_into
from sqlalchemy.engine.row import RowMapping
from sqlalchemy.exc import IntegrityError

from kit.data.database import Transaction
from kit.data.prepared import Prepared, Row
from kit.identity.caller import Role

from ..model import Credentials, Profile, User, canonical_email, canonical_username
from ..tables import users

# Built once, because every sign-in and every mail runs them.
_BY_ID = Prepared(select(users).where(users.c.id == bindparam("user_id")))
_BY_IDS = Prepared(select(users).where(users.c.id == any_(bindparam("user_ids", type_=ARRAY(Uuid)))))
_BY_LOGIN = Prepared(
    select(users).where(
        or_(users.c.email_canonical == bindparam("login"), users.c.username_canonical == bindparam("login"))
    )
)
_HELD = Prepared(
    select(users)
    .where(
        users.c.id == bindparam("user_id"),
        users.c.password_changed_at == bindparam("changed_at"),
        users.c.password_disabled_at.is_(None),
    )
    .with_for_update(key_share=True)
)


_VOID_PROOFS = {"proof_epoch": users.c.proof_epoch + 1}
"""Increments the proof epoch; belongs in every change of what proofs protect, and voids all challenges and checked passwords.

An epoch instead of deleting the challenges, which would miss one whose insertion has not been committed.
"""


async def insert(tx: Transaction, user: User, password_hash: str | None) -> bool:
    """Insert the account. False, without effect, if the address or the username belongs to another account."""
    statement = insert_into(users).values(
        id=user.id,
        **profile_values(user.profile),
        username_canonical=_canonical(user.profile.username),
        role=user.role,
        password_hash=password_hash,
        password_changed_at=user.created_at,
        created_at=user.created_at,
    )
    # SQLAlchemy reports no row count of an INSERT.
    inserted = await tx.execute(statement.on_conflict_do_nothing().returning(users.c.id))
    return inserted.scalar_one_or_none() is not None


async def find(tx: Transaction, user_id: UUID) -> User | None:
    row = await _BY_ID.one_or_none(tx, {"user_id": user_id})
    return user_of(row) if row else None


async def find_all(tx: Transaction, user_ids: Sequence[UUID]) -> dict[UUID, User]:
    """Find those of the accounts that exist, in a single statement."""
    return {row["id"]: user_of(row) for row in await _BY_IDS.execute(tx, {"user_ids": user_ids})}


async def find_by_email(tx: Transaction, email: str) -> User | None:
    query = select(users).where(users.c.email_canonical == canonical_email(email))
    row = (await tx.execute(query)).mappings().one_or_none()
    return user_of(row) if row else None


async def find_credentials(tx: Transaction, canonical_login: str) -> Credentials | None:
    """Find the account by address or username. Only addresses have an @, so at most one account matches."""
    return _credentials(await _BY_LOGIN.one_or_none(tx, {"login": canonical_login}))


async def credentials_of(tx: Transaction, user_id: UUID) -> Credentials | None:
    return _credentials(await _BY_ID.one_or_none(tx, {"user_id": user_id}))


async def lock(tx: Transaction, user_id: UUID) -> Credentials | None:
    """Lock the account's row: serializes changes of the account, and opening sessions.

    Every operation that ends several sessions takes this lock first; otherwise two that end each other's would deadlock.
    """
    query = select(users).where(users.c.id == user_id).with_for_update(key_share=True)
    return _credentials((await tx.execute(query)).mappings().one_or_none())


async def keep(tx: Transaction, user_id: UUID) -> bool:
    """Take a share lock that keeps the account from being deleted. False if it does not exist."""
    query = select(users.c.id).where(users.c.id == user_id).with_for_update(read=True, key_share=True)
    return (await tx.execute(query)).scalar_one_or_none() is not None


async def keep_by_email(tx: Transaction, email: str) -> Credentials | None:
    """The account that has the address, kept from being deleted until the transaction ends; None if there is none."""
    query = select(users).where(users.c.email_canonical == canonical_email(email))
    return _credentials((await tx.execute(query.with_for_update(read=True, key_share=True))).mappings().one_or_none())


async def hold_password(tx: Transaction, user_id: UUID, changed_at: datetime) -> User | None:
    """Lock the account with its present password until the transaction ends.

    Otherwise two concurrent sign-ins could both find room for one more session.

    None if the password was changed or disabled, or the account deleted.
    """
    row = await _HELD.one_or_none(tx, {"user_id": user_id, "changed_at": changed_at})
    return user_of(row) if row else None


async def replace_password_hash(tx: Transaction, user_id: UUID, *, old: str, new: str) -> None:
    """Store a new hash of the same password, unless another transaction has changed it."""
    await tx.execute(
        update_table(users).where(users.c.id == user_id, users.c.password_hash == old).values(password_hash=new)
    )


async def set_password(tx: Transaction, user_id: UUID, password_hash: str, now: datetime) -> None:
    """Set another password, and enable it if the former one was disabled."""
    values = {"password_hash": password_hash, "password_changed_at": now, "password_disabled_at": None}
    await _set(tx, user_id, **values, **_VOID_PROOFS)


async def remove_password(tx: Transaction, user_id: UUID, now: datetime) -> None:
    """Remove the password: only codes sign in until another one is set."""
    values = {"password_hash": None, "password_changed_at": now, "password_disabled_at": None}
    await _set(tx, user_id, **values, **_VOID_PROOFS)


async def disable_password(tx: Transaction, user_id: UUID, now: datetime) -> bool:
    """Disable the password. False if it is disabled already."""
    statement = update_table(users).where(users.c.id == user_id, users.c.password_disabled_at.is_(None))
    return (await tx.execute(statement.values(password_disabled_at=now, **_VOID_PROOFS))).rowcount == 1


async def enable_password(tx: Transaction, user_id: UUID) -> None:
    await _set(tx, user_id, password_disabled_at=None)


async def set_role(tx: Transaction, user_id: UUID, role: Role) -> None:
    await _set(tx, user_id, role=role, **_VOID_PROOFS)


async def set_profile(tx: Transaction, user_id: UUID, profile: Profile) -> bool:
    """Set the profile. False, without effect, if the address or the username belongs to another account.

    A new address voids what was proven by the former one.
    """
    values = {**profile_values(profile), "username_canonical": _canonical(profile.username)}
    moves = users.c.email_canonical != values["email_canonical"]
    values["proof_epoch"] = users.c.proof_epoch + case((moves, 1), else_=0)
    try:
        async with tx.begin_nested():
            await _set(tx, user_id, **values)
    except IntegrityError:
        return False
    return True


async def delete(tx: Transaction, user_id: UUID) -> None:
    """Delete the account, and by cascade its sessions and challenges."""
    await tx.execute(delete_from(users).where(users.c.id == user_id))


async def _set(tx: Transaction, user_id: UUID, **values: Any) -> None:
    await tx.execute(update_table(users).where(users.c.id == user_id).values(**values))


def _canonical(username: str | None) -> str | None:
    return None if username is None else canonical_username(username)


def profile_values(profile: Profile) -> dict[str, Any]:
    """The columns that users and registrations have in common."""
    return {
        "email": profile.email,
        "email_canonical": canonical_email(profile.email),
        "username": profile.username,
        "first_name": profile.first_name,
        "last_name": profile.last_name,
        "preferences": list(profile.preferences),
    }


def profile_of(row: RowMapping | Row, prefix: str = "") -> Profile:
    return Profile(
        email=row[prefix + "email"],
        username=row[prefix + "username"],
        first_name=row[prefix + "first_name"],
        last_name=row[prefix + "last_name"],
        preferences=tuple(row[prefix + "preferences"]),
    )


def user_of(row: RowMapping | Row, prefix: str = "") -> User:
    """The user in a row. `prefix` is the label of its columns in a join."""
    return User(
        id=row[prefix + "id"],
        profile=profile_of(row, prefix),
        role=Role(row[prefix + "role"]),
        created_at=row[prefix + "created_at"],
        has_password=row[prefix + "password_hash"] is not None,
    )


def _credentials(row: RowMapping | Row | None) -> Credentials | None:
    if row is None:
        return None
    return Credentials(
        user=user_of(row),
        password_hash=row["password_hash"],
        password_changed_at=row["password_changed_at"],
        password_disabled_at=row["password_disabled_at"],
        proof_epoch=row["proof_epoch"],
    )
