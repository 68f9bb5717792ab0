"""Every SQL statement of the story service.

Leases are reckoned by the database's clock: workers on several machines share no other.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    DateTime,
    FromClause,
    Integer,
    Interval,
    ScalarSelect,
    Select,
    String,
    Uuid,
    and_,
    bindparam,
    case,
    cast,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine.row import RowMapping

from services.kit import inbox, outbox
from services.kit.database import Transaction
from services.kit.erasure import HOLD, erased_subjects, name_of
from services.kit.paging import PageRequest

from .model import Checkpoint, Demand, Length, Limits, State, Story, Wish
from .tables import admissions, stories

_ADMISSION_LOCKS, _WRITER_LOCKS = 0x5354, 0x5752
"""Any constants: they keep these locks apart from others that are named by two numbers."""

_UNFINISHED = (State.QUEUED, State.RUNNING)

# Statements that every story needs are built once: to build one takes longer than to send it.

_ahead = stories.alias("ahead")


def _queued_at(table: FromClause) -> ColumnElement[datetime]:
    # Empty in what the version before has written.
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

_FIND = _STORIES.where(stories.c.id == bindparam("story"))

_INSERT_REQUEST = (
    insert(stories)
    .values(
        state=State.QUEUED,
        title="",
        text="",
        attempt=0,
        failures=0,
        writer="",
        model="",
        prompt_tokens=0,
        completion_tokens=0,
        failure_reason="",
        dispatched_at=func.now(),
    )
    .on_conflict_do_nothing(index_elements=["owner_id", "request_id"])
    # The statement sees the queue as it was before it.
    .returning(
        stories,
        (select(func.count()).where(_ahead.c.state == State.QUEUED).scalar_subquery() + 1).label("queue_position"),
    )
)


def _count(rows: Select[Any]) -> ScalarSelect[int]:
    """Of a limited query: whatever there is, no more is looked at."""
    return select(func.count()).select_from(rows.subquery()).scalar_subquery()


_BEGIN_ATTEMPT = (
    update(stories)
    .where(
        stories.c.id == bindparam("story"),
        stories.c.deleted_at.is_(None),
        or_(
            and_(
                stories.c.state == State.QUEUED,
                or_(stories.c.available_at.is_(None), stories.c.available_at <= func.now()),
            ),
            and_(stories.c.state == State.RUNNING, stories.c.leased_until < func.now()),
        ),
    )
    .values(
        # An abandoned attempt killed its worker, so it counts as a failure; one that was handed back does not.
        failures=stories.c.failures + cast(stories.c.state == State.RUNNING, Integer),
        state=State.RUNNING,
        attempt=stories.c.attempt + 1,
        writer=bindparam("by"),
        model=bindparam("with"),
        started_at=bindparam("now"),
        leased_until=func.now() + bindparam("lease", type_=Interval),
    )
    .returning(stories, literal(0).label("queue_position"))
)

_RUNNING = update(stories).where(
    stories.c.id == bindparam("story"),
    stories.c.attempt == bindparam("number"),
    stories.c.state == State.RUNNING,
)

# No lock orders these against an erasure, for the row does: who deletes it waits for them, and takes what was told as well.
_END = _RUNNING.where(~exists().where(erased_subjects.c.subject_id == stories.c.owner_id)).values(
    title=bindparam("new_title"), text=bindparam("new_text"), completed_at=bindparam("now"), leased_until=None
)
_COMPLETE = _END.values(
    state=State.COMPLETED, prompt_tokens=bindparam("prompted"), completion_tokens=bindparam("completed")
)
_FAIL = _END.values(state=State.FAILED, failure_reason=bindparam("why"))

_owner = bindparam("owner", type_=Uuid)
_ADMIT = select(
    _count(
        select(stories.c.id)
        .where(stories.c.owner_id == _owner, stories.c.state.in_(_UNFINISHED))
        .limit(bindparam("most", type_=Integer))
    ),
    select(admissions.c.admitted_at)
    .where(admissions.c.owner_id == _owner)
    .order_by(admissions.c.admitted_at.desc())
    .offset(bindparam("a_day", type_=Integer) - 1)
    .limit(1)
    .scalar_subquery(),
    _count(select(stories.c.id).where(stories.c.state == State.QUEUED).limit(bindparam("backlog", type_=Integer))),
    exists().where(erased_subjects.c.subject_id == _owner),
).add_cte(
    insert(admissions)
    .values(owner_id=_owner, admitted_at=bindparam("now", type_=DateTime(timezone=True)))
    .cte("admitted")
)


_LOCK_ADMISSIONS = select(
    HOLD,
    func.pg_advisory_xact_lock(
        bindparam("locks", _ADMISSION_LOCKS, Integer), func.hashtext(bindparam("owner_id", type_=String))
    ),
)


async def lock_admissions(tx: Transaction, owner_id: UUID) -> None:
    """Lets one transaction at a time admit stories of the owner, and holds off their erasure.

    Two owners who share a lock only wait for each other.
    """
    await tx.execute(_LOCK_ADMISSIONS, {"lock": name_of(owner_id), "owner_id": str(owner_id)})


async def admit(tx: Transaction, owner_id: UUID, limits: Limits, now: datetime) -> Demand:
    """Records an admission, and answers what was asked for before it: to refuse it is to roll back.

    In one statement, for every request passes here.
    """
    values = {
        "owner": owner_id,
        "now": now,
        "most": limits.unfinished,
        "a_day": limits.a_day,
        "backlog": limits.backlog,
    }
    return Demand(*(await tx.execute(_ADMIT, values)).one())


async def place_of_first(tx: Transaction, owner_id: UUID) -> int:
    """By how many places the queue has to move for the owner's first unfinished story to be done."""
    query = _STORIES.where(stories.c.owner_id == owner_id, stories.c.state.in_(_UNFINISHED))
    row = (await tx.execute(query.order_by(stories.c.id).limit(1))).mappings().one_or_none()
    return max(row["queue_position"], 1) if row else 1


async def latest_completions(tx: Transaction, limit: int) -> Sequence[datetime]:
    query = select(stories.c.completed_at).where(stories.c.state == State.COMPLETED)
    return list((await tx.execute(query.order_by(stories.c.completed_at.desc()).limit(limit))).scalars())


async def forget_admissions(tx: Transaction, *, before: datetime) -> None:
    await tx.execute(delete(admissions).where(admissions.c.admitted_at < before))


async def erase_admissions(tx: Transaction, owner_id: UUID) -> None:
    await tx.execute(delete(admissions).where(admissions.c.owner_id == owner_id))


async def insert_request(
    tx: Transaction, story_id: UUID, owner_id: UUID, wish: Wish, *, digest: bytes, request_id: str | None, now: datetime
) -> Story | None:
    """`digest` is that of the wish as it was asked for.

    None when the owner's request id was used before; then nothing is written.
    """
    values = {
        "id": story_id,
        "owner_id": owner_id,
        "request_id": request_id,
        "request_digest": digest,
        "preferences": list(wish.preferences),
        "theme": wish.theme,
        "prompt": wish.prompt,
        "length": wish.length,
        "language": wish.language,
        "created_at": now,
        "queued_at": now,
    }
    row = (await tx.execute(_INSERT_REQUEST, values)).mappings().one_or_none()
    return _story(row) if row else None


async def find(tx: Transaction, story_id: UUID) -> Story | None:
    row = (await tx.execute(_FIND, {"story": story_id})).mappings().one_or_none()
    return _story(row) if row else None


async def states(tx: Transaction, story_ids: Collection[UUID]) -> dict[UUID, State]:
    """Those of the stories that exist."""
    query = select(stories.c.id, stories.c.state).where(stories.c.id.in_(story_ids), stories.c.deleted_at.is_(None))
    return {row.id: State(row.state) for row in await tx.execute(query)}


async def find_by_request(tx: Transaction, owner_id: UUID, request_id: str) -> tuple[Story, bytes] | None:
    """The story and the digest of the wish it was requested with."""
    query = _STORIES.where(stories.c.owner_id == owner_id, stories.c.request_id == request_id)
    row = (await tx.execute(query)).mappings().one_or_none()
    return (_story(row), row["request_digest"]) if row else None


async def page(tx: Transaction, owner_id: UUID, state: State | None, request: PageRequest) -> Sequence[Story]:
    """Newest first, one more than asked for when there are more."""
    query = _STORIES.where(stories.c.owner_id == owner_id).order_by(stories.c.id.desc()).limit(request.size + 1)
    if state:
        query = query.where(stories.c.state == state)
    if request.before:
        query = query.where(stories.c.id < request.before)
    return [_story(row) for row in (await tx.execute(query)).mappings()]


async def cancel(tx: Transaction, story_id: UUID, *, seen: tuple[int, str, str] | None = None, now: datetime) -> bool:
    """False when the story is not unfinished. Cancelling or completing, what comes first decides; the other changes nothing.

    `seen` is an attempt, its words as watchers know them, usually some more than the last checkpoint, and its title.
    """
    values: dict[str, Any] = {"state": State.CANCELLED, "completed_at": now, "leased_until": None}
    if seen:
        attempt, text, title = seen
        more = and_(stories.c.attempt == attempt, func.length(stories.c.text) < len(text))
        values["text"] = case((more, text), else_=stories.c.text)
        values["title"] = case((more & (stories.c.title == ""), title), else_=stories.c.title)
    statement = update(stories).where(stories.c.id == story_id, stories.c.state.in_(_UNFINISHED)).values(**values)
    return (await tx.execute(statement)).rowcount == 1


async def queue_again(tx: Transaction, story_id: UUID, *, now: datetime) -> bool:
    """As if it were requested for the first time, but for the attempts. False when the story is neither failed nor cancelled."""
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
    """From here on the story exists for nobody, and its request id may be used anew."""
    statement = update(stories).where(stories.c.id == story_id, stories.c.deleted_at.is_(None))
    await tx.execute(statement.values(deleted_at=func.now(), request_id=None))


async def hidden(tx: Transaction, longer_than: timedelta, limit: int) -> Sequence[UUID]:
    """Stories whose deletion began so long ago that it was broken off."""
    query = select(stories.c.id).where(stories.c.deleted_at < func.now() - longer_than).limit(limit)
    return list((await tx.execute(query)).scalars())


async def lock_beginnings(tx: Transaction, writer: str) -> int:
    """Lets one transaction at a time begin attempts with the writer, and answers how many are running."""
    await tx.execute(
        select(func.pg_advisory_xact_lock(cast(_WRITER_LOCKS, Integer), func.hashtext(cast(writer, String))))
    )
    running = select(func.count()).where(
        stories.c.state == State.RUNNING, stories.c.writer == writer, stories.c.leased_until >= func.now()
    )
    return int((await tx.execute(running)).scalar_one())


async def begin_attempt(
    tx: Transaction, story_id: UUID, *, writer: str, model: str, lease: timedelta, now: datetime
) -> Story | None:
    """Starts the next attempt at a queued story that is available, or at one whose worker's lease has ended; else None.

    Title and text are those of the last checkpoint: go on from there, or `start_over`.
    """
    values = {"story": story_id, "by": writer, "with": model, "lease": lease, "now": now}
    row = (await tx.execute(_BEGIN_ATTEMPT, values)).mappings().one_or_none()
    return _story(row) if row else None


async def held_for(tx: Transaction, story_id: UUID) -> timedelta | None:
    """How long no attempt may begin: by the lease of the running one, or by the pause after the last. None for a final story."""
    until = case((stories.c.state == State.RUNNING, stories.c.leased_until), else_=stories.c.available_at)
    query = select(func.coalesce(until, func.now()) - func.now()).where(
        stories.c.id == story_id, stories.c.state.in_(_UNFINISHED)
    )
    held: timedelta | None = (await tx.execute(query)).scalar_one_or_none()
    return held


async def start_over(tx: Transaction, story_id: UUID, attempt: int) -> None:
    await _update_attempt(tx, story_id, attempt, title="", text="")


async def renew_lease(
    tx: Transaction, story_id: UUID, attempt: int, lease: timedelta, *, checkpoint: Checkpoint | None = None
) -> bool:
    """False when the attempt is not the running one any more. The checkpoint is to be given where it has changed."""
    saved = {} if checkpoint is None else _saved(checkpoint)
    return await _update_attempt(tx, story_id, attempt, leased_until=func.now() + lease, **saved)


async def complete(
    tx: Transaction, story_id: UUID, attempt: int, written: Checkpoint, *, tokens: tuple[int, int], now: datetime
) -> bool:
    """False when the attempt is not the running one any more, or its owner is being erased."""
    values = {
        "story": story_id,
        "number": attempt,
        "new_title": written.title,
        "new_text": written.text,
        "prompted": tokens[0],
        "completed": tokens[1],
        "now": now,
    }
    return (await tx.execute(_COMPLETE, values)).rowcount == 1


async def fail(
    tx: Transaction, story_id: UUID, attempt: int, reason: str, written: Checkpoint, *, now: datetime
) -> bool:
    """What was written is what watchers have seen. False as in `complete`."""
    values = {
        "story": story_id,
        "number": attempt,
        "new_title": written.title,
        "new_text": written.text,
        "why": reason,
        "now": now,
    }
    return (await tx.execute(_FAIL, values)).rowcount == 1


async def requeue(
    tx: Transaction, story_id: UUID, attempt: int, checkpoint: Checkpoint, *, pause: timedelta | None
) -> bool:
    """Puts the story back into the queue, to be begun after a pause when the attempt has failed; no pause: its worker leaves.

    The next attempt may go on from the checkpoint. False when the attempt is not the running one any more.
    """
    return await _update_attempt(
        tx,
        story_id,
        attempt,
        state=State.QUEUED,
        **_saved(checkpoint),
        failures=stories.c.failures + (0 if pause is None else 1),
        available_at=func.now() + (pause or timedelta(0)),
        leased_until=None,
    )


async def lock_undispatched(
    tx: Transaction, older_than: timedelta, limit: int, *, before: datetime | None = None
) -> Sequence[UUID]:
    """Unfinished stories that nobody holds, and that were due so long ago, and `before` that; marked as dispatched again."""
    due_at = func.greatest(stories.c.dispatched_at, stories.c.available_at)
    unheld = or_(
        stories.c.state == State.QUEUED, (stories.c.state == State.RUNNING) & (stories.c.leased_until < func.now())
    )
    lost = (
        select(stories.c.id)
        .where(
            stories.c.state.in_(_UNFINISHED),
            unheld,
            due_at < func.least(func.now(), before) - older_than,
        )
        .order_by(stories.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    statement = update(stories).where(stories.c.id.in_(lost)).values(dispatched_at=func.now()).returning(stories.c.id)
    return list((await tx.execute(statement)).scalars())


async def ids_of(tx: Transaction, owner_id: UUID, limit: int) -> dict[UUID, datetime | None]:
    """Some of the owner's stories, whatever their state, and when they were completed."""
    query = select(stories.c.id, stories.c.completed_at).where(stories.c.owner_id == owner_id)
    return {row.id: row.completed_at for row in await tx.execute(query.order_by(stories.c.id).limit(limit))}


async def erase(tx: Transaction, story_ids: Collection[UUID]) -> None:
    """Deletes the stories and all that was to be told of them."""
    # First: this waits for whoever is changing one of them, so that the statements after it see what was added to the outbox there.
    await tx.execute(delete(stories).where(stories.c.id.in_(story_ids)))
    keys = [str(story_id) for story_id in story_ids]
    await tx.execute(delete(outbox.table).where(outbox.table.c.key.in_(keys)))
    await tx.execute(delete(inbox.dead_letters).where(inbox.dead_letters.c.key.in_(keys)))


async def _update_attempt(tx: Transaction, story_id: UUID, attempt: int, **values: Any) -> bool:
    """The fence: only the running attempt may write."""
    return (await tx.execute(_RUNNING.values(values), {"story": story_id, "number": attempt})).rowcount == 1


def _saved(checkpoint: Checkpoint) -> dict[str, str]:
    return {"title": checkpoint.title, "text": checkpoint.text}


def _story(row: RowMapping) -> Story:
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
        # Empty in what the version before has written.
        queued_at=row["queued_at"] or row["created_at"],
        started_at=row["started_at"],
        completed_at=row["completed_at"],
    )
