"""Stories as their owners see them: inserted, read, cancelled, queued again and deleted."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Uuid,
    and_,
    any_,
    bindparam,
    case,
    delete,
    func,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine.row import RowMapping

from kit.data.database import Transaction
from kit.data.paging import PageRequest
from kit.data.prepared import Prepared, Row
from kit.events import dead_letter_store, outbox

from ..model import Length, State, Story, Wish
from ..tables import stories

UNFINISHED = (State.QUEUED, State.RUNNING)

# Frequent statements are built once, because SQLAlchemy takes longer to build one than to send it.

_ahead = stories.alias("ahead")


def _queued_at(table: FromClause) -> ColumnElement[datetime]:
    # NULL in rows of the previous version.
    return func.coalesce(table.c.queued_at, table.c.created_at)


_STORIES = select(
    stories,
    select(func.count())
    .where(
        stories.c.state == State.QUEUED,
        _ahead.c.state == State.QUEUED,
        tuple_(_queued_at(_ahead), _ahead.c.id) <= tuple_(_queued_at(stories), stories.c.id),
    )
    .scalar_subquery()
    .label("queue_position"),
).where(stories.c.deleted_at.is_(None))

_FIND = Prepared(_STORIES.where(stories.c.id == bindparam("story")))
_FIND_ALL = Prepared(_STORIES.where(stories.c.id == any_(bindparam("stories", type_=ARRAY(Uuid)))))
_FIND_BY_REQUEST = Prepared(
    _STORIES.where(stories.c.owner_id == bindparam("owner"), stories.c.request_id == bindparam("request"))
)


async def find(tx: Transaction, story_id: UUID) -> Story | None:
    row = await _FIND.one_or_none(tx, {"story": story_id})
    return story_of(row) if row else None


async def find_all(tx: Transaction, story_ids: Sequence[UUID]) -> dict[UUID, Story]:
    """Find those stories that exist, in a single statement."""
    rows = await _FIND_ALL.execute(tx, {"stories": story_ids})
    return {row["id"]: story_of(row) for row in rows}


async def lock(tx: Transaction, story_id: UUID) -> UUID | None:
    """Return the story's owner, and let a deletion of the story wait for the transaction; None if there is no such story."""
    query = select(stories.c.owner_id).where(stories.c.id == story_id, stories.c.deleted_at.is_(None))
    return (await tx.execute(query.with_for_update(key_share=True))).scalar_one_or_none()


async def states(tx: Transaction, story_ids: Collection[UUID]) -> dict[UUID, State]:
    """Return the states of those stories that exist."""
    query = select(stories.c.id, stories.c.state).where(stories.c.id.in_(story_ids), stories.c.deleted_at.is_(None))
    return {row.id: State(row.state) for row in await tx.execute(query)}


async def find_by_request(tx: Transaction, owner_id: UUID, request_id: str) -> tuple[Story, bytes] | None:
    """Return the story and the digest of the wish as requested."""
    row = await _FIND_BY_REQUEST.one_or_none(tx, {"owner": owner_id, "request": request_id})
    return (story_of(row), row["request_digest"]) if row else None


async def page(tx: Transaction, owner_id: UUID, state: State | None, request: PageRequest) -> Sequence[Story]:
    """Return the owner's stories, newest first: the page, and one story more if there is a next page."""
    query = _STORIES.where(stories.c.owner_id == owner_id).order_by(stories.c.id.desc()).limit(request.size + 1)
    if state:
        query = query.where(stories.c.state == state)
    if request.before:
        query = query.where(stories.c.id < request.before)
    return [story_of(row) for row in (await tx.execute(query)).mappings()]


async def place_of_first(tx: Transaction, owner_id: UUID) -> int:
    """Return the queue position of the owner's first unfinished story, at least 1."""
    query = _STORIES.where(stories.c.owner_id == owner_id, stories.c.state.in_(UNFINISHED))
    row = (await tx.execute(query.order_by(stories.c.id).limit(1))).mappings().one_or_none()
    return max(row["queue_position"], 1) if row else 1


async def latest_completions(tx: Transaction, limit: int) -> Sequence[datetime]:
    """Return the times of the latest completions, newest first."""
    query = select(stories.c.completed_at).where(stories.c.state == State.COMPLETED)
    return list((await tx.execute(query.order_by(stories.c.completed_at.desc()).limit(limit))).scalars())


async def cancel(tx: Transaction, story_id: UUID, *, seen: tuple[int, str, str] | None = None, now: datetime) -> bool:
    """Cancel an unfinished story; False when it is final. Of a cancellation and a completion, the first to commit wins.

    `seen` is an attempt with its text and title as watchers have seen them, usually longer than the last checkpoint.
    """
    values: dict[str, Any] = {"state": State.CANCELLED, "completed_at": now, "leased_until": None}
    if seen:
        attempt, text, title = seen
        more = and_(stories.c.attempt == attempt, func.length(stories.c.text) < len(text))
        values["text"] = case((more, text), else_=stories.c.text)
        values["title"] = case((more & (stories.c.title == ""), title), else_=stories.c.title)
    statement = update(stories).where(stories.c.id == story_id, stories.c.state.in_(UNFINISHED)).values(**values)
    return (await tx.execute(statement)).rowcount == 1


async def queue_again(tx: Transaction, story_id: UUID, *, now: datetime) -> bool:
    """Queue a failed or cancelled story as a new one that keeps its attempt number. False when it is neither, or deleted."""
    statement = (
        update(stories)
        .where(
            stories.c.id == story_id,
            stories.c.state.in_([State.FAILED, State.CANCELLED]),
            stories.c.deleted_at.is_(None),
        )
        .values(
            state=State.QUEUED,
            title="",
            text="",
            failures=0,
            failure_reason="",
            prompt_tokens=0,
            completion_tokens=0,
            queued_at=now,
            available_at=None,
            completed_at=None,
            dispatched_at=func.now(),
        )
    )
    return (await tx.execute(statement)).rowcount == 1


async def hide(tx: Transaction, story_id: UUID) -> None:
    """Hide the story from everybody, and free its request id."""
    statement = update(stories).where(stories.c.id == story_id, stories.c.deleted_at.is_(None))
    await tx.execute(statement.values(deleted_at=func.now(), request_id=None))


async def hidden(tx: Transaction, longer_than: timedelta, limit: int) -> Sequence[UUID]:
    """Return stories that were hidden more than `longer_than` ago, so that their deletion must have been interrupted."""
    query = select(stories.c.id).where(stories.c.deleted_at < func.now() - longer_than).limit(limit)
    return list((await tx.execute(query)).scalars())


async def ids_of(tx: Transaction, owner_id: UUID, limit: int) -> dict[UUID, datetime | None]:
    """Return at most `limit` of the owner's stories in any state, with their completion times."""
    query = select(stories.c.id, stories.c.completed_at).where(stories.c.owner_id == owner_id)
    return {row.id: row.completed_at for row in await tx.execute(query.order_by(stories.c.id).limit(limit))}


async def erase(tx: Transaction, story_ids: Collection[UUID]) -> None:
    """Delete the stories, and their events in the outbox and among the dead letters."""
    # Stories first: this DELETE waits for transactions that change one, so that the next statements see their outbox rows.
    await tx.execute(delete(stories).where(stories.c.id.in_(story_ids)))
    keys = [str(story_id) for story_id in story_ids]
    await tx.execute(delete(outbox.table).where(outbox.table.c.key.in_(keys)))
    await tx.execute(delete(dead_letter_store.dead_letters).where(dead_letter_store.dead_letters.c.key.in_(keys)))


def story_of(row: Row | RowMapping) -> Story:
    return Story(
        id=row["id"],
        owner_id=row["owner_id"],
        wish=Wish(tuple(row["preferences"]), row["theme"], row["prompt"], Length(row["length"]), row["language"]),
        state=State(row["state"]),
        title=row["title"],
        text=row["text"],
        attempt=row["attempt"],
        failures=row["failures"],
        queue_position=row["queue_position"],
        writer=row["writer"],
        model=row["model"],
        prompt_tokens=row["prompt_tokens"],
        completion_tokens=row["completion_tokens"],
        failure_reason=row["failure_reason"],
        created_at=row["created_at"],
        # NULL in rows of the previous version.
        queued_at=row["queued_at"] or row["created_at"],
        started_at=row["started_at"],
        completed_at=row["completed_at"],
    )
