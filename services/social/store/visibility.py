"""Who sees what of whom, in SQL. Every statement that yields a profile to a viewer is made of these, and of nothing else.

`model.sight` says the same in Python; a test compares the two. No verdict is kept: each is made from the rows of its moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import ColumnElement, Uuid, and_, any_, bindparam, case, exists, literal, not_, or_, select
from sqlalchemy.dialects.postgresql import ARRAY

from kit.data.database import Transaction
from kit.data.prepared import Prepared, Row

from ..model import MessagePolicy, Profile, Relationship, SeenProfile, Sight, State
from ..tables import blocks, mutes, profiles

VIEWER: ColumnElement[UUID] = bindparam("viewer", type_=Uuid)
"""The person who looks; NULL stands for another service, which asks for nobody."""

_BLOCKED = exists().where(blocks.c.user_id == profiles.c.user_id, blocks.c.subject_id == VIEWER).correlate(profiles)
_BLOCKING = exists().where(blocks.c.user_id == VIEWER, blocks.c.subject_id == profiles.c.user_id).correlate(profiles)
_MUTING = exists().where(mutes.c.user_id == VIEWER, mutes.c.subject_id == profiles.c.user_id).correlate(profiles)

VISIBLE = and_(profiles.c.state == State.ACTIVE, not_(_BLOCKED))
"""Whether the viewer sees anything of a row of `profiles`."""

_SIGHT = case(
    (or_(VIEWER.is_(None), profiles.c.user_id == VIEWER), literal(Sight.WHOLE.value)),
    (or_(profiles.c.private, _BLOCKING), literal(Sight.CARD.value)),
    else_=literal(Sight.WHOLE.value),
)

SEEN = select(profiles, _SIGHT.label("sight"), _BLOCKING.label("blocking"), _MUTING.label("muting")).where(VISIBLE)
"""Profiles that the viewer sees, with how much of them."""

_BY_IDS = Prepared(SEEN.where(profiles.c.user_id == any_(bindparam("user_ids", type_=ARRAY(Uuid)))))
_BY_HANDLE = Prepared(SEEN.where(profiles.c.handle == bindparam("handle")))


async def by_ids(tx: Transaction, viewer_id: UUID | None, user_ids: Sequence[UUID]) -> dict[UUID, SeenProfile]:
    """Those of the people of whom the viewer sees something, by id."""
    rows = await _BY_IDS.execute(tx, {"viewer": viewer_id, "user_ids": list(user_ids)})
    return {row["user_id"]: seen_of(row) for row in rows}


async def by_handle(tx: Transaction, viewer_id: UUID, handle: str) -> SeenProfile | None:
    row = await _BY_HANDLE.one_or_none(tx, {"viewer": viewer_id, "handle": handle})
    return seen_of(row) if row else None


def seen_of(row: Row) -> SeenProfile:
    """A row of SEEN."""
    return SeenProfile(
        profile_of(row), Sight(row["sight"]), Relationship(blocking=row["blocking"], muting=row["muting"])
    )


def profile_of(row: Row) -> Profile:
    """A row of `profiles`."""
    return Profile(
        user_id=row["user_id"],
        state=State(row["state"]),
        handle=row["handle"] or "",
        display_name=row["display_name"],
        bio=row["bio"],
        private=row["private"],
        message_policy=MessagePolicy(row["message_policy"]),
        created_at=row["created_at"],
        avatar_file_id=row["avatar_file_id"],
        avatar_showing_id=row["avatar_showing_id"],
    )
