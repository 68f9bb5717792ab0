"""Links to stories. A story has one row at most, which stays when its link is revoked, so that no mail revives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import DateTime, Uuid, and_, any_, bindparam, case, column, delete, func, literal, null, or_, select
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.engine.row import RowMapping

from kit.data.database import Transaction
from kit.data.paging import PageRequest
from kit.data.prepared import Prepared

from ..model import State
from ..model.links import Link, SharedStory
from ..tables import stories, story_links

_COLUMNS = ("id", "story_id", "created_at", "expires_at", "revoked_at")
_SHOWN = and_(stories.c.state == State.COMPLETED, stories.c.deleted_at.is_(None))


async def create(
    tx: Transaction, link_ids: Mapping[UUID, UUID], *, now: datetime, expires_at: datetime, renewed: bool
) -> Sequence[Link]:
    """Insert links of completed stories that have none, and return what each story has then; nothing for one that is not there.

    `link_ids` are the ids of the new links by those of the stories.
    `renewed` is an owner's wish: the link works until `expires_at`, and a revoked one is replaced. Otherwise a link that works and
    one that was revoked stay as they are. An expired one is replaced in either case.
    """
    row = story_links.c
    expired = row.expires_at <= now
    replaced = or_(row.revoked_at.is_not(None), expired) if renewed else and_(row.revoked_at.is_(None), expired)
    wanted = (
        func.unnest(literal(list(link_ids), ARRAY(Uuid)), literal(list(link_ids.values()), ARRAY(Uuid)))
        .table_valued(column("story_id", Uuid), column("link_id", Uuid), name="wanted")
        .render_derived()
    )
    # The lock lets a concurrent deletion of a story wait, or this statement find no story. In order, so that two calls that share
    # stories cannot wait for each other.
    found = (
        select(
            stories.c.id,
            stories.c.owner_id,
            wanted.c.link_id,
            literal(now, DateTime(timezone=True)),
            literal(expires_at, DateTime(timezone=True)),
        )
        .join_from(stories, wanted, stories.c.id == wanted.c.story_id)
        .where(_SHOWN)
        .order_by(stories.c.id)
        .with_for_update(key_share=True, of=stories)
    )
    adding = insert(story_links).from_select(["story_id", "owner_id", "id", "created_at", "expires_at"], found)
    new = adding.excluded
    statement = adding.on_conflict_do_update(
        index_elements=["story_id"],
        set_={
            "id": case((replaced, new.id), else_=row.id),
            "created_at": case((replaced, new.created_at), else_=row.created_at),
            "expires_at": new.expires_at if renewed else case((replaced, new.expires_at), else_=row.expires_at),
            "revoked_at": case((replaced, null()), else_=row.revoked_at),
        },
    ).returning(*(row[name] for name in _COLUMNS))
    return [_link(row) for row in (await tx.execute(statement)).mappings()]


async def revoke(tx: Transaction, story_id: UUID, owner_id: UUID, link_id: UUID, *, now: datetime) -> None:
    """Revoke the story's link. Without one, insert a revoked one with the id `link_id`, so that a mail makes none later."""
    adding = insert(story_links).values(
        story_id=story_id, owner_id=owner_id, id=link_id, created_at=now, expires_at=now, revoked_at=now
    )
    already = story_links.c.revoked_at
    await tx.execute(
        adding.on_conflict_do_update(
            index_elements=["story_id"], set_={"revoked_at": case((already.is_(None), now), else_=already)}
        )
    )


_SHARED = Prepared(
    select(story_links.c.id, stories.c.title, stories.c.text, stories.c.language, story_links.c.expires_at)
    .join_from(story_links, stories, stories.c.id == story_links.c.story_id)
    .where(
        story_links.c.id == any_(bindparam("links", type_=ARRAY(Uuid))),
        story_links.c.revoked_at.is_(None),
        story_links.c.expires_at > bindparam("now", type_=DateTime(timezone=True)),
        _SHOWN,
    )
)


async def shared_stories(tx: Transaction, link_ids: Sequence[UUID], now: datetime) -> dict[UUID, SharedStory]:
    """The stories that the links show, by the links' ids; none for a link that shows none any more. In a single statement."""
    rows = await _SHARED.execute(tx, {"links": link_ids, "now": now})
    return {row["id"]: SharedStory(row["title"], row["text"], row["language"], row["expires_at"]) for row in rows}


async def page(tx: Transaction, owner_id: UUID, now: datetime, request: PageRequest) -> Sequence[Link]:
    """Return the owner's links that work, newest first: the page, and one more if there is a next page."""
    query = (
        select(*(story_links.c[name] for name in _COLUMNS))
        .join_from(story_links, stories, stories.c.id == story_links.c.story_id)
        .where(
            story_links.c.owner_id == owner_id,
            story_links.c.revoked_at.is_(None),
            story_links.c.expires_at > now,
            _SHOWN,
        )
        .order_by(story_links.c.id.desc())
        .limit(request.size + 1)
    )
    if request.before:
        query = query.where(story_links.c.id < request.before)
    return [_link(row) for row in (await tx.execute(query)).mappings()]


async def forget_expired(tx: Transaction, before: datetime) -> None:
    """Delete links that expired before the time; revoked ones stay, so that no mail revives them."""
    await tx.execute(delete(story_links).where(story_links.c.expires_at < before, story_links.c.revoked_at.is_(None)))


def _link(row: RowMapping) -> Link:
    return Link(**{name: row[name] for name in _COLUMNS})
