"""Sessions and refresh rotation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    DateTime,
    Integer,
    Select,
    Uuid,
    bindparam,
    exists,
    func,
    or_,
    select,
    update,
)
from sqlalchemy import insert as insert_into
from sqlalchemy.engine.row import RowMapping

from kit.data.database import Transaction
from kit.data.paging import PageRequest

from ..model import Device, RevokeReason, Session, SignInMethod, User
from ..tables import sessions, users
from .batches import MOST, delete_some
from .users import user_of

_Id = UUID | BindParameter[UUID]
_Time = datetime | BindParameter[datetime]
_owner = users.alias("owner")


async def insert(tx: Transaction, session: Session) -> Session:
    """Insert the session and return it as stored: with the account's epoch."""
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
    epoch: int = (await tx.execute(_INSERT, values)).scalar_one()
    return replace(session, epoch=epoch)


async def find(tx: Transaction, session_id: UUID) -> tuple[Session, User] | None:
    """The session and its owner, or None."""
    row = (await tx.execute(_WITH_OWNER, {"session_id": session_id})).mappings().one_or_none()
    return (replace(_session(row), outdated=row["outdated"]), user_of(row, "owner_")) if row else None


async def page(tx: Transaction, user_id: UUID, request: PageRequest, now: datetime) -> Sequence[Session]:
    """The account's live sessions, newest first: one more than `size` if there are more."""
    query = select(sessions).where(_live_of(user_id, now))
    if request.before:
        query = query.where(sessions.c.id < request.before)
    rows = await tx.execute(query.order_by(sessions.c.id.desc()).limit(request.size + 1))
    return [_session(row) for row in rows.mappings()]


async def addresses(tx: Transaction, session: Session) -> Sequence[str]:
    """The addresses at which the owner's other sessions with this agent and name were last used, ended sessions included."""
    device = session.device
    values = {"owner_id": session.user_id, "opened": session.id, "agent": device.user_agent, "named": device.name}
    query = _ADDRESSES_OF_NAME if device.has_own_name else _ADDRESSES
    return list((await tx.execute(query, values)).scalars())


async def is_live(tx: Transaction, session_id: UUID, now: datetime) -> bool:
    """Whether the session is neither revoked nor expired."""
    query = select(sessions.c.id).where(sessions.c.id == session_id, _live(now))
    return (await tx.execute(query)).scalar_one_or_none() is not None


async def belongs_to(tx: Transaction, session_id: UUID, user_id: UUID) -> bool:
    """Whether the session is the account's, also when it has ended."""
    query = select(sessions.c.id).where(sessions.c.id == session_id, sessions.c.user_id == user_id)
    return (await tx.execute(query)).scalar_one_or_none() is not None


async def rotate(
    tx: Transaction,
    session: Session,
    *,
    token_digest: bytes,
    expires_at: datetime,
    refreshed_until: datetime,
    ip: str,
    user_agent: str,
    now: datetime,
) -> Session | None:
    """Compare and swap on the generation. None if the session was rotated or revoked meanwhile."""
    values = {
        "session_id": session.id,
        "before": session.generation,
        "digest": token_digest,
        "at": now,
        "until": expires_at,
        "access_until": refreshed_until,
        "address": ip,
        "agent": user_agent,
    }
    row = (await tx.execute(_ROTATE, values)).mappings().one_or_none()
    return _session(row) if row else None


async def count_repeat(tx: Transaction, session: Session, most: int) -> bool:
    """Count a repeat of the newest token. False if there were enough, or the session was rotated or revoked meanwhile."""
    statement = (
        update(sessions)
        .where(
            sessions.c.id == session.id,
            sessions.c.generation == session.generation,
            sessions.c.repeats < most,
            sessions.c.revoked_at.is_(None),
        )
        .values(
            repeats=sessions.c.repeats + 1, late_generation=session.late_generation, late_repeats=session.late_repeats
        )
    )
    return (await tx.execute(statement)).rowcount == 1


async def revoke(tx: Transaction, session_id: UUID, reason: RevokeReason, now: datetime) -> bool:
    """Revoke the session. False if it had ended before, or does not exist."""
    statement = update(sessions).where(sessions.c.id == session_id, _live(now))
    return (await tx.execute(statement.values(revoked_at=now, revoke_reason=reason))).rowcount == 1


async def revoke_all(
    tx: Transaction, user_id: UUID, reason: RevokeReason, now: datetime, *, but: UUID | None
) -> tuple[int, int]:
    """End all sessions of the account by a new epoch. Returns how many there were, and the epoch.

    Marks a part of the rows here, and `mark_some` the rest: writing 100,000 rows takes a second. The caller holds the account's
    lock.
    """
    theirs = _live_of(user_id, now)
    if but is not None:
        theirs &= sessions.c.id != but
    count = await _mark(tx, select(sessions.c.id).where(theirs).limit(MOST), _live_in(user_id, now), reason, now)
    begun: dict[str, object] = {"session_epoch": users.c.session_epoch + 1, "kept_session_id": but}
    if count == MOST:
        count += await _count(tx, theirs)
        begun["unmarked_reason"] = reason
    statement = update(users).where(users.c.id == user_id).values(begun).returning(users.c.session_epoch)
    return count, (await tx.execute(statement)).scalar_one()


async def count_live(tx: Transaction, user_id: UUID, now: datetime) -> int:
    return await _count(tx, _live_of(user_id, now))


async def _count(tx: Transaction, which: ColumnElement[bool]) -> int:
    counted: int = (await tx.execute(select(func.count()).select_from(sessions).where(which))).scalar_one()
    return counted


async def revoke_surplus(tx: Transaction, user_id: UUID, now: datetime, *, keep: int, but: UUID) -> Sequence[UUID]:
    """End the surplus of live sessions, those unused longest first, except two. Returns their ids, MOST at a time.

    The caller holds the account's lock.
    """
    values = {"owner_id": user_id, "at": now, "kept": keep, "opened": but}
    return list((await tx.execute(_REVOKE_SURPLUS, values)).scalars())


async def mark_some(tx: Transaction, now: datetime) -> int:
    """Mark rows of sessions that ended with their epoch. Returns how many, 0 when none is left."""
    # Skip locked rows: the account's transaction that holds them writes the mark as well.
    query = select(users.c.id, users.c.unmarked_reason).where(users.c.unmarked_reason.is_not(None)).limit(1)
    found = (await tx.execute(query.with_for_update(key_share=True, skip_locked=True))).one_or_none()
    if found is None:
        return 0
    unmarked = sessions.c.revoked_at.is_(None) & (sessions.c.expires_at > now) & ~_of_this_epoch()
    some = select(sessions.c.id).where(sessions.c.user_id == found.id, unmarked).limit(MOST)
    marked = await _mark(tx, some, unmarked, found.unmarked_reason, now)
    if marked < MOST:
        await tx.execute(update(users).where(users.c.id == found.id).values(unmarked_reason=None))
    return MOST


async def _mark(
    tx: Transaction, which: Select[tuple[UUID]], still: ColumnElement[bool], reason: RevokeReason, now: datetime
) -> int:
    """Mark the rows. `still` is evaluated again for a row that another transaction has written meanwhile."""
    statement = update(sessions).where(sessions.c.id.in_(which), still)
    return (await tx.execute(statement.values(revoked_at=now, revoke_reason=reason))).rowcount


async def delete_ended(tx: Transaction, before: datetime) -> int:
    """Delete sessions that expired or were revoked before the given time. Returns how many."""
    return await delete_some(tx, sessions, or_(sessions.c.expires_at < before, sessions.c.revoked_at < before))


def _live(now: datetime) -> ColumnElement[bool]:
    return sessions.c.revoked_at.is_(None) & (sessions.c.expires_at > now) & _of_this_epoch()


def _live_of(user_id: _Id, now: _Time) -> ColumnElement[bool]:
    return (sessions.c.user_id == user_id) & _live_in(user_id, now)


def _live_in(user_id: _Id, now: _Time) -> ColumnElement[bool]:
    """The condition for live sessions of one account.

    A subquery reads the account once. With a join, Postgres looks it up for each session when it expects only a few.
    """
    epoch = select(_owner.c.session_epoch).where(_owner.c.id == user_id).scalar_subquery()
    kept = select(_owner.c.kept_session_id).where(_owner.c.id == user_id).scalar_subquery()
    this = (sessions.c.epoch >= epoch) | (sessions.c.id == kept)
    return sessions.c.revoked_at.is_(None) & (sessions.c.expires_at > now) & this


def _of_this_epoch() -> ColumnElement[bool]:
    this = (sessions.c.epoch >= _owner.c.session_epoch) | (sessions.c.id == _owner.c.kept_session_id)
    return exists().where(_owner.c.id == sessions.c.user_id, this).correlate(sessions)


def _session(row: RowMapping) -> Session:
    return Session(
        id=row["id"],
        user_id=row["user_id"],
        device=Device(name=row["device_name"], user_agent=row["user_agent"], ip=row["ip"]),
        methods=tuple(SignInMethod(method) for method in row["methods"]),
        created_at=row["created_at"],
        last_used_at=row["last_used_at"],
        expires_at=row["expires_at"],
        ends_at=row["ends_at"],
        generation=row["generation"],
        nonce=row["nonce"],
        token_digest=row["token_digest"],
        rotated_at=row["rotated_at"],
        repeats=row["repeats"],
        late_generation=row["late_generation"],
        late_repeats=row["late_repeats"],
        refreshed_until=row["refreshed_until"],
        revoked_at=row["revoked_at"],
        epoch=row["epoch"],
    )


# Built once: SQLAlchemy takes as long to build a statement as Postgres to run it, and every sign-in or refresh runs these.

_INSERT = insert_into(sessions).returning(sessions.c.epoch)

_OWNER_ID = bindparam("owner_id", type_=Uuid)
_OPENED = bindparam("opened", type_=Uuid)
_AT = bindparam("at", type_=DateTime(timezone=True))

_SURPLUS = (
    select(sessions.c.id)
    .where(_live_of(_OWNER_ID, _AT), sessions.c.id != _OPENED)
    .order_by(sessions.c.last_used_at.desc(), sessions.c.id.desc())
    .offset(bindparam("kept", type_=Integer))
    .limit(MOST)
)
_REVOKE_SURPLUS = (
    update(sessions)
    .where(sessions.c.id.in_(_SURPLUS), _live_in(_OWNER_ID, _AT))
    .values(revoked_at=_AT, revoke_reason=RevokeReason.TOO_MANY)
    .returning(sessions.c.id)
)

_ADDRESSES = (
    select(sessions.c.ip)
    .where(sessions.c.user_id == _OWNER_ID, sessions.c.id != _OPENED, sessions.c.user_agent == bindparam("agent"))
    .order_by(sessions.c.id.desc())
    .limit(MOST)
)
_ADDRESSES_OF_NAME = _ADDRESSES.where(sessions.c.device_name == bindparam("named"))

_WITH_OWNER = (
    # The owner's columns have labels, because both tables have an id and a creation time.
    select(sessions, ~_of_this_epoch().label("outdated"), *(column.label(f"owner_{column.name}") for column in users.c))
    .join(users, users.c.id == sessions.c.user_id)
    .where(sessions.c.id == bindparam("session_id"))
)

_ROTATE = (
    update(sessions)
    .where(
        sessions.c.id == bindparam("session_id"),
        sessions.c.generation == bindparam("before"),
        sessions.c.revoked_at.is_(None),
    )
    .values(
        generation=sessions.c.generation + 1,
        token_digest=bindparam("digest"),
        rotated_at=_AT,
        last_used_at=_AT,
        expires_at=bindparam("until"),
        refreshed_until=bindparam("access_until"),
        repeats=0,
        ip=bindparam("address"),
        user_agent=bindparam("agent"),
    )
    .returning(sessions)
)
