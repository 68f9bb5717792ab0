"""Every SQL statement of the auth service."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import delete, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine.row import RowMapping

from services.kit.caller import Role
from services.kit.database import Transaction

from .model import (
    Credentials,
    Device,
    KeyState,
    Method,
    Profile,
    Registration,
    RevokeReason,
    Session,
    SigningKey,
    User,
    canonical_email,
    canonical_username,
)
from .tables import registrations, sessions, signing_keys, users


async def insert_user(tx: Transaction, user: User, password_hash: str) -> bool:
    """False when the address or the username belongs to another account; then nothing is written."""
    username = user.profile.username
    statement = insert(users).values(
        id=user.id,
        **_profile_values(user.profile),
        username_canonical=None if username is None else canonical_username(username),
        role=user.role,
        password_hash=password_hash,
        password_changed_at=user.created_at,
        created_at=user.created_at,
    )
    # SQLAlchemy reports no row count of an INSERT.
    inserted = await tx.execute(statement.on_conflict_do_nothing().returning(users.c.id))
    return inserted.scalar_one_or_none() is not None


async def find_user(tx: Transaction, user_id: UUID) -> User | None:
    row = (await tx.execute(select(users).where(users.c.id == user_id))).mappings().one_or_none()
    return _user(row) if row else None


async def find_owner(tx: Transaction, email: str) -> UUID | None:
    """The account that the address belongs to."""
    query = select(users.c.id).where(users.c.email_canonical == canonical_email(email))
    owner: UUID | None = (await tx.execute(query)).scalar_one_or_none()
    return owner


async def find_credentials(tx: Transaction, canonical_login: str) -> Credentials | None:
    """By address or username: only the former has an @, so that at most one account matches."""
    query = select(users).where(
        or_(users.c.email_canonical == canonical_login, users.c.username_canonical == canonical_login)
    )
    row = (await tx.execute(query)).mappings().one_or_none()
    return Credentials(_user(row), row["password_hash"], row["password_changed_at"]) if row else None


async def replace_password_hash(tx: Transaction, user_id: UUID, *, old: str, new: str) -> None:
    """The same password hashed anew; without effect when somebody else was faster."""
    statement = update(users).where(users.c.id == user_id, users.c.password_hash == old).values(password_hash=new)
    await tx.execute(statement)


async def hold_password(tx: Transaction, user_id: UUID, changed_at: datetime) -> bool:
    """Keeps the password from being changed until the transaction ends. False when it was changed or the account deleted since."""
    query = select(users.c.id).where(users.c.id == user_id, users.c.password_changed_at == changed_at)
    return (await tx.execute(query.with_for_update(read=True))).scalar_one_or_none() is not None


async def insert_registration(tx: Transaction, registration: Registration) -> None:
    statement = insert(registrations).values(
        id=registration.id,
        **_profile_values(registration.profile),
        password_hash=registration.password_hash,
        created_at=registration.created_at,
        expires_at=registration.expires_at,
    )
    await tx.execute(statement)


async def find_registration(tx: Transaction, registration_id: UUID, now: datetime) -> Registration | None:
    query = select(registrations).where(registrations.c.id == registration_id, registrations.c.expires_at > now)
    row = (await tx.execute(query)).mappings().one_or_none()
    return _registration(row) if row else None


async def extend_registration(tx: Transaction, registration_id: UUID, expires_at: datetime) -> bool:
    """False when it was completed meanwhile."""
    statement = update(registrations).where(registrations.c.id == registration_id).values(expires_at=expires_at)
    return (await tx.execute(statement)).rowcount == 1


async def delete_registrations(tx: Transaction, email: str) -> None:
    """Ends every registration of the address."""
    await tx.execute(delete(registrations).where(registrations.c.email_canonical == canonical_email(email)))


async def delete_expired_registrations(tx: Transaction, now: datetime) -> int:
    return (await tx.execute(delete(registrations).where(registrations.c.expires_at <= now))).rowcount


async def insert_session(tx: Transaction, session: Session) -> None:
    statement = insert(sessions).values(
        id=session.id,
        user_id=session.user_id,
        device_name=session.device.name,
        user_agent=session.device.user_agent,
        ip=session.device.ip,
        methods=list(session.methods),
        created_at=session.created_at,
        last_used_at=session.created_at,
        expires_at=session.expires_at,
        ends_at=session.ends_at,
        generation=session.generation,
        nonce=session.nonce,
        token_digest=session.token_digest,
        rotated_at=session.rotated_at,
        repeats=session.repeats,
    )
    await tx.execute(statement)


async def find_session(tx: Transaction, session_id: UUID) -> tuple[Session, User] | None:
    """The session and its owner."""
    # Both tables have an id and a time of creation: the owner's are labelled.
    owner = [column.label(f"owner_{column.name}") for column in users.c]
    query = select(sessions, *owner).join(users, users.c.id == sessions.c.user_id).where(sessions.c.id == session_id)
    row = (await tx.execute(query)).mappings().one_or_none()
    return (_session(row), _user(row, "owner_")) if row else None


async def is_live(tx: Transaction, session_id: UUID, now: datetime) -> bool:
    """True while the session is neither revoked nor expired."""
    query = select(sessions.c.id).where(
        sessions.c.id == session_id, sessions.c.revoked_at.is_(None), sessions.c.expires_at > now
    )
    return (await tx.execute(query)).scalar_one_or_none() is not None


async def rotate_session(
    tx: Transaction,
    session: Session,
    *,
    token_digest: bytes,
    expires_at: datetime,
    ip: str,
    user_agent: str,
    now: datetime,
) -> Session | None:
    """Compare and swap on the generation. None when the session was rotated or revoked meanwhile."""
    statement = (
        update(sessions)
        .where(
            sessions.c.id == session.id,
            sessions.c.generation == session.generation,
            sessions.c.revoked_at.is_(None),
        )
        .values(
            generation=session.generation + 1,
            token_digest=token_digest,
            rotated_at=now,
            last_used_at=now,
            expires_at=expires_at,
            repeats=0,
            ip=ip,
            user_agent=user_agent,
        )
        .returning(sessions)
    )
    row = (await tx.execute(statement)).mappings().one_or_none()
    return _session(row) if row else None


async def count_repeat(tx: Transaction, session: Session, most: int) -> bool:
    """False when the newest token was handed out again often enough, or the session was rotated or revoked meanwhile."""
    statement = (
        update(sessions)
        .where(
            sessions.c.id == session.id,
            sessions.c.generation == session.generation,
            sessions.c.repeats < most,
            sessions.c.revoked_at.is_(None),
        )
        .values(repeats=sessions.c.repeats + 1)
    )
    return (await tx.execute(statement)).rowcount == 1


async def revoke_session(tx: Transaction, session_id: UUID, reason: RevokeReason, now: datetime) -> bool:
    """False when it was revoked before, or is gone."""
    statement = (
        update(sessions)
        .where(sessions.c.id == session_id, sessions.c.revoked_at.is_(None))
        .values(revoked_at=now, revoke_reason=reason)
    )
    return (await tx.execute(statement)).rowcount == 1


async def delete_ended_sessions(tx: Transaction, before: datetime) -> int:
    """Those that expired or were revoked before the given time."""
    ended = or_(sessions.c.expires_at < before, sessions.c.revoked_at < before)
    return (await tx.execute(delete(sessions).where(ended))).rowcount


async def all_keys(tx: Transaction) -> Sequence[SigningKey]:
    """Newest first."""
    query = select(signing_keys).order_by(signing_keys.c.created_at.desc(), signing_keys.c.kid)
    return [_key(row) for row in (await tx.execute(query)).mappings()]


async def lock_keys(tx: Transaction) -> Sequence[SigningKey]:
    """Lets one transaction at a time move keys on."""
    query = select(signing_keys).order_by(signing_keys.c.kid).with_for_update()
    return [_key(row) for row in (await tx.execute(query)).mappings()]


async def insert_key(tx: Transaction, key: SigningKey) -> None:
    """Without effect when there is one in this state already: PENDING and ACTIVE exist once."""
    statement = insert(signing_keys).values(
        kid=key.kid,
        state=key.state,
        public_jwk=key.public_jwk,
        sealed_private_key=key.sealed_private_key,
        created_at=key.created_at,
        activated_at=key.activated_at,
    )
    await tx.execute(statement.on_conflict_do_nothing())


async def activate_key(tx: Transaction, kid: str, now: datetime) -> None:
    statement = update(signing_keys).where(signing_keys.c.kid == kid)
    await tx.execute(statement.values(state=KeyState.ACTIVE, activated_at=now))


async def retire_key(tx: Transaction, kid: str, now: datetime) -> None:
    """Its private half is erased at once."""
    statement = update(signing_keys).where(signing_keys.c.kid == kid)
    await tx.execute(statement.values(state=KeyState.RETIRED, retired_at=now, sealed_private_key=None))


async def delete_retired_keys(tx: Transaction, before: datetime) -> int:
    return (await tx.execute(delete(signing_keys).where(signing_keys.c.retired_at < before))).rowcount


def _profile_values(profile: Profile) -> dict[str, Any]:
    return {
        "email": profile.email,
        "email_canonical": canonical_email(profile.email),
        "username": profile.username,
        "first_name": profile.first_name,
        "last_name": profile.last_name,
        "preferences": list(profile.preferences),
    }


def _profile(row: RowMapping, prefix: str = "") -> Profile:
    return Profile(
        email=row[prefix + "email"],
        username=row[prefix + "username"],
        first_name=row[prefix + "first_name"],
        last_name=row[prefix + "last_name"],
        preferences=tuple(row[prefix + "preferences"]),
    )


def _user(row: RowMapping, prefix: str = "") -> User:
    return User(
        id=row[prefix + "id"],
        profile=_profile(row, prefix),
        role=Role(row[prefix + "role"]),
        created_at=row[prefix + "created_at"],
    )


def _registration(row: RowMapping) -> Registration:
    return Registration(
        id=row["id"],
        profile=_profile(row),
        password_hash=row["password_hash"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
    )


def _session(row: RowMapping) -> Session:
    return Session(
        id=row["id"],
        user_id=row["user_id"],
        device=Device(name=row["device_name"], user_agent=row["user_agent"], ip=row["ip"]),
        methods=tuple(Method(method) for method in row["methods"]),
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        ends_at=row["ends_at"],
        generation=row["generation"],
        nonce=row["nonce"],
        token_digest=row["token_digest"],
        rotated_at=row["rotated_at"],
        repeats=row["repeats"],
        revoked_at=row["revoked_at"],
    )


def _key(row: RowMapping) -> SigningKey:
    return SigningKey(
        kid=row["kid"],
        state=KeyState(row["state"]),
        public_jwk=row["public_jwk"],
        sealed_private_key=row["sealed_private_key"],
        created_at=row["created_at"],
        activated_at=row["activated_at"],
        retired_at=row["retired_at"],
    )
