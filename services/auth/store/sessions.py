"""Sessions and refresh rotation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BindParameter,
    Boolean,
    ColumnElement,
    DateTime,
    Integer,
    Select,
    Text,
    Uuid,
    any_,
    bindparam,
    case,
    exists,
    func,
    or_,
    select,
    update,
)
from sqlalchemy import insert as insert_into
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine.row import RowMapping

from kit.data.database import Transaction
from kit.data.paging import PageRequest
from kit.data.prepared import Prepared, Row

from ..model import Device, RevokeReason, Session, SignInMethod, User
from ..tables import sessions, users
from .batches import MOST, delete_some
from .users import user_of

_Id = UUID | BindParameter[UUID]
_Time = datetime | BindParameter[datetime]
_owner = users.alias("owner")


@dataclass(frozen=True, slots=True)
class Inserted:
    """A session as stored, with the account's epoch, and what its insertion found."""

    session: Session
    surplus: Sequence[UUID]
    """The sessions that were ended because there are more than there may be, MOST at a time."""
    addresses: Sequence[str]
    """The addresses at which the owner's other sessions with this agent and name were last used, ended sessions included."""


async def insert(tx: Transaction, session: Session, *, most: int, with_addresses: bool) -> Inserted:
    """Insert the session and end the surplus of live ones, those unused longest first, in one statement.

    The caller holds the account's lock. The addresses are looked up only `with_addresses`.
    """
    device = session.device
    values = {
        "new_id": session.id,
        "owner_id": session.user_id,
        "named": device.name,
        "agent": device.user_agent,
        "new_ip": device.ip,
        "new_methods": list(session.methods),
        "at": session.created_at,
        "new_last_used_at": session.last_used_at,
        "new_expires_at": session.expires_at,
        "new_ends_at": session.ends_at,
        "new_generation": session.generation,
        "new_nonce": session.nonce,
        "new_token_digest": session.token_digest,
        "new_rotated_at": session.rotated_at,
        "new_repeats": session.repeats,
        "kept": most - 1,
        "with_addresses": with_addresses,
    }
    (row,) = await (_INSERT_NAMED if device.has_own_name else _INSERT).execute(tx, values)
    return Inserted(replace(session, epoch=row["epoch"]), row["surplus"], row["addresses"] or [])


async def find(tx: Transaction, session_id: UUID) -> tuple[Session, User] | None:
    """The session and its owner, or None."""
    row = await _WITH_OWNER.one_or_none(tx, {"session_id": session_id})
    return (replace(_session(row), outdated=row["outdated"]), user_of(row, "owner_")) if row else None


async def page(tx: Transaction, user_id: UUID, request: PageRequest, now: datetime) -> Sequence[Session]:
    """The account's live sessions, newest first: one more than `size` if there are more."""
    query = select(sessions).where(_live_of(user_id, now))
    if request.before:
        query = query.where(sessions.c.id < request.before)
    rows = await tx.execute(query.order_by(sessions.c.id.desc()).limit(request.size + 1))
    return [_session(row) for row in rows.mappings()]


async def is_live(tx: Transaction, session_id: UUID, now: datetime) -> bool:
    """Whether the session is neither revoked nor expired."""
    query = select(sessions.c.id).where(sessions.c.id == session_id, _live(now))
    return (await tx.execute(query)).scalar_one_or_none() is not None


async def live_among(tx: Transaction, session_ids: Sequence[UUID], now: datetime) -> dict[UUID, bool]:
    """True for each of the sessions that is neither revoked nor expired, in a single statement; nothing for the others."""
    return {row["id"]: True for row in await _LIVE_AMONG.execute(tx, {"session_ids": session_ids, "now": now})}


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
    row = await _ROTATE.one_or_none(tx, values)
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
    # As an array, for the reason that `_insertion` gives.
    these = func.array(which.scalar_subquery(), type_=ARRAY(Uuid))
    statement = update(sessions).where(sessions.c.id == any_(these), still)
    return (await tx.execute(statement.values(revoked_at=now, revoke_reason=reason))).rowcount


async def delete_ended(tx: Transaction, before: datetime) -> int:
    """Delete sessions that expired or were revoked before the given time. Returns how many."""
    return await delete_some(tx, sessions, or_(sessions.c.expires_at < before, sessions.c.revoked_at < before))


def _live(now: _Time) -> ColumnElement[bool]:
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


def _session(row: RowMapping | Row) -> Session:
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

_OWNER_ID = bindparam("owner_id", type_=Uuid)
_AGENT = bindparam("agent", type_=Text)
_NAMED = bindparam("named", type_=Text)
_AT = bindparam("at", type_=DateTime(timezone=True))
_GIVEN: Mapping[str, BindParameter[Any]] = {
    "user_id": _OWNER_ID,
    "device_name": _NAMED,
    "user_agent": _AGENT,
    "created_at": _AT,
    **{
        name: bindparam(f"new_{name}", type_=sessions.c[name].type)
        for name in (
            *("id", "ip", "methods", "last_used_at", "expires_at", "ends_at"),
            *("generation", "nonce", "token_digest", "rotated_at", "repeats"),
        )
    },
}

_others = sessions.alias("others")


def _insertion(*alike: ColumnElement[bool]) -> Prepared:
    """The statement of `insert`. Its parts see neither the new session nor each other's changes."""
    opened = insert_into(sessions).values(_GIVEN).returning(sessions.c.epoch).cte("opened")
    too_many = (
        select(sessions.c.id)
        .where(_live_of(_OWNER_ID, _AT))
        .order_by(sessions.c.last_used_at.desc(), sessions.c.id.desc())
        .offset(bindparam("kept", type_=Integer))
        .limit(MOST)
    )
    surplus = (
        update(sessions)
        # As an array, because it is made once: with IN, Postgres may choose to sort the account's sessions again for each session
        # of all accounts. Whether they live is evaluated again for rows that another transaction has written meanwhile.
        .where(
            sessions.c.id == any_(func.array(too_many.scalar_subquery(), type_=ARRAY(Uuid))),
            _live_of(_OWNER_ID, _AT),
        )
        .values(revoked_at=_AT, revoke_reason=RevokeReason.TOO_MANY)
        .returning(sessions.c.id)
        .cte("surplus")
    )
    seen = (
        select(_others.c.ip)
        .where(_others.c.user_id == _OWNER_ID, _others.c.user_agent == _AGENT, *alike)
        .order_by(_others.c.id.desc())
        .limit(MOST)
        .subquery("seen")
    )
    addresses = func.array(select(seen.c.ip).distinct().scalar_subquery(), type_=ARRAY(Text))
    return Prepared(
        select(
            select(opened.c.epoch).scalar_subquery().label("epoch"),
            func.array(select(surplus.c.id).scalar_subquery(), type_=ARRAY(Uuid)).label("surplus"),
            # Not evaluated without need: a person's sessions may be many.
            case((bindparam("with_addresses", type_=Boolean), addresses)).label("addresses"),
        )
    )


_INSERT = _insertion()
_INSERT_NAMED = _insertion(_others.c.device_name == _NAMED)

_WITH_OWNER = Prepared(
    # The owner's columns have labels, because both tables have an id and a creation time.
    select(
        sessions, (~_of_this_epoch()).label("outdated"), *(column.label(f"owner_{column.name}") for column in users.c)
    )
    .join(users, users.c.id == sessions.c.user_id)
    .where(sessions.c.id == bindparam("session_id"))
)

_LIVE_AMONG = Prepared(
    select(sessions.c.id).where(
        sessions.c.id == any_(bindparam("session_ids", type_=ARRAY(Uuid))),
        _live(bindparam("now", type_=DateTime(timezone=True))),
    )
)

_ROTATE = Prepared(
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
