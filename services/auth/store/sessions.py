"""Sessions and the refresh of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import ColumnElement, delete, or_, select, update
from sqlalchemy import insert as insert_into
from sqlalchemy.engine.row import RowMapping

from services.kit.database import Transaction
from services.kit.paging import PageRequest

from ..model import Device, Method, RevokeReason, Session, User
from ..tables import sessions, users
from .users import user_of

# Built once: SQLAlchemy takes as long to build a statement as Postgres to run it, and every sign-in runs this one.
_INSERT = insert_into(sessions)


async def insert(tx: Transaction, session: Session) -> None:
    values = {
        "id": session.id,
        "user_id": session.user_id,
        "device_name": session.device.name,
        "user_agent": session.device.user_agent,
        "ip": session.device.ip,
        "methods": list(session.methods),
        "created_at": session.created_at,
        "last_used_at": session.last_used_at,
        "expires_at": session.expires_at,
        "ends_at": session.ends_at,
        "generation": session.generation,
        "nonce": session.nonce,
        "token_digest": session.token_digest,
        "rotated_at": session.rotated_at,
        "repeats": session.repeats,
    }
    await tx.execute(_INSERT, values)


async def find(tx: Transaction, session_id: UUID) -> tuple[Session, User] | None:
    """The session and its owner."""
    # Both tables have an id and a time of creation: the owner's are labelled.
    owner = [column.label(f"owner_{column.name}") for column in users.c]
    query = select(sessions, *owner).join(users, users.c.id == sessions.c.user_id).where(sessions.c.id == session_id)
    row = (await tx.execute(query)).mappings().one_or_none()
    return (_session(row), user_of(row, "owner_")) if row else None


async def page(tx: Transaction, user_id: UUID, request: PageRequest, now: datetime) -> Sequence[Session]:
    """The live ones, newest first, one more than asked for when there are more."""
    query = select(sessions).where(sessions.c.user_id == user_id, _live(now))
    if request.before:
        query = query.where(sessions.c.id < request.before)
    rows = await tx.execute(query.order_by(sessions.c.id.desc()).limit(request.size + 1))
    return [_session(row) for row in rows.mappings()]


async def is_live(tx: Transaction, session_id: UUID, now: datetime) -> bool:
    """True while the session is neither revoked nor expired."""
    query = select(sessions.c.id).where(sessions.c.id == session_id, _live(now))
    return (await tx.execute(query)).scalar_one_or_none() is not None


async def belongs_to(tx: Transaction, session_id: UUID, user_id: UUID) -> bool:
    """Also when it has ended."""
    query = select(sessions.c.id).where(sessions.c.id == session_id, sessions.c.user_id == user_id)
    return (await tx.execute(query)).scalar_one_or_none() is not None


async def rotate(
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


async def revoke(tx: Transaction, session_id: UUID, reason: RevokeReason, now: datetime) -> bool:
    """False when it had ended before, or is gone."""
    return len(await _revoke(tx, sessions.c.id == session_id, reason, now)) == 1


async def revoke_all(
    tx: Transaction, user_id: UUID, reason: RevokeReason, now: datetime, *, but: UUID | None = None
) -> Sequence[UUID]:
    """Which ones. The caller holds the account's lock."""
    theirs = sessions.c.user_id == user_id
    return await _revoke(tx, theirs if but is None else theirs & (sessions.c.id != but), reason, now)


async def _revoke(tx: Transaction, which: ColumnElement[bool], reason: RevokeReason, now: datetime) -> Sequence[UUID]:
    statement = (
        update(sessions).where(which, _live(now)).values(revoked_at=now, revoke_reason=reason).returning(sessions.c.id)
    )
    return list((await tx.execute(statement)).scalars())


async def delete_ended(tx: Transaction, before: datetime) -> int:
    """Those that expired or were revoked before the given time."""
    ended = or_(sessions.c.expires_at < before, sessions.c.revoked_at < before)
    return (await tx.execute(delete(sessions).where(ended))).rowcount


def _live(now: datetime) -> ColumnElement[bool]:
    return sessions.c.revoked_at.is_(None) & (sessions.c.expires_at > now)


def _session(row: RowMapping) -> Session:
    return Session(
        id=row["id"],
        user_id=row["user_id"],
        device=Device(name=row["device_name"], user_agent=row["user_agent"], ip=row["ip"]),
        methods=tuple(Method(method) for method in row["methods"]),
        created_at=row["created_at"],
        last_used_at=row["last_used_at"],
        expires_at=row["expires_at"],
        ends_at=row["ends_at"],
        generation=row["generation"],
        nonce=row["nonce"],
        token_digest=row["token_digest"],
        rotated_at=row["rotated_at"],
        repeats=row["repeats"],
        revoked_at=row["revoked_at"],
    )
