"""Every SQL statement of the story service.

Leases are reckoned by the database's clock: workers on several machines share no other.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Integer, ScalarSelect, Select, String, and_, case, cast, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine.row import RowMapping

from services.kit import inbox, outbox
from services.kit.database import Transaction
from services.kit.paging import PageRequest

from .model import Demand, Length, Limits, State, Story, Wish
from .tables import admissions, stories

_ADMISSION_LOCKS = 0x5354
"""Any constant: it keeps these locks apart from others that are named by two numbers."""

_UNFINISHED = (State.QUEUED, State.RUNNING)


async def lock_admissions(tx: Transaction, owner_id: UUID) -> None:
    """Lets one transaction at a time admit stories of the owner. Two owners who share a lock only wait for each other."""
    lock = func.pg_advisory_xact_lock(cast(_ADMISSION_LOCKS, Integer), func.hashtext(cast(str(owner_id), String)))
    await tx.execute(select(lock))


async def demand(tx: Transaction, owner_id: UUID, limits: Limits) -> Demand:
    """In one query, for every request asks."""
    unfinished = select(stories.c.id).where(stories.c.owner_id == owner_id, stories.c.state.in_(_UNFINISHED))
    queued = select(stories.c.id).where(stories.c.state == State.QUEUED)
    newest_first = select(admissions.c.admitted_at).where(admissions.c.owner_id == owner_id)
    newest_first = newest_first.order_by(admissions.c.admitted_at.desc())
    query = select(
        _count(unfinished.limit(limits.unfinished)),
        newest_first.offset(limits.a_day - 1).limit(1).scalar_subquery(),
        _count(queued.limit(limits.backlog)),
    )
    return Demand(*(await tx.execute(query)).one())


async def place_of_first(tx: Transaction, owner_id: UUID) -> int:
    """By how many places the queue has to move for the owner's first unfinished story to be done."""
    query = _stories().where(stories.c.owner_id == owner_id, stories.c.state.in_(_UNFINISHED))
    row = (await tx.execute(query.order_by(stories.c.id).limit(1))).mappings().one_or_none()
    return max(row["queue_position"], 1) if row else 1


async def latest_completions(tx: Transaction, limit: int) -> Sequence[datetime]:
    query = select(stories.c.completed_at).where(stories.c.state == State.COMPLETED)
    return list((await tx.execute(query.order_by(stories.c.completed_at.desc()).limit(limit))).scalars())


async def insert_admission(tx: Transaction, owner_id: UUID, now: datetime) -> None:
    await tx.execute(insert(admissions).values(owner_id=owner_id, admitted_at=now))


async def forget_admissions(tx: Transaction, *, before: datetime) -> None:
    await tx.execute(delete(admissions).where(admissions.c.admitted_at < before))


async def erase_admissions(tx: Transaction, owner_id: UUID) -> None:
    await tx.execute(delete(admissions).where(admissions.c.owner_id == owner_id))


async def insert_request(
    tx: Transaction, story_id: UUID, owner_id: UUID, wish: Wish, *, digest: bytes, request_id: str | None, now: datetime
) -> bool:
    """`digest` is that of the wish as it was asked for.

    False when the owner's request id was used before; then nothing is written.
    """
    statement = insert(stories).values(
        id=story_id,
        owner_id=owner_id,
        request_id=request_id,
        request_digest=digest,
        state=State.QUEUED,
        title="",
        text="",
        preferences=list(wish.preferences),
        theme=wish.theme,
        prompt=wish.prompt,
        length=wish.length,
        language=wish.language,
        attempt=0,
        failures=0,
        writer="",
        model="",
        prompt_tokens=0,
        completion_tokens=0,
        failure_reason="",
        created_at=now,
        queued_at=now,
        dispatched_at=func.now(),
    )
    statement = statement.on_conflict_do_nothing(index_elements=["owner_id", "request_id"])
    # SQLAlchemy does not report the row count of an insert; what comes back says whether there was one.
    return (await tx.execute(statement.returning(stories.c.id))).scalar_one_or_none() is not None


async def find(tx: Transaction, story_id: UUID) -> Story | None:
    row = (await tx.execute(_stories().where(stories.c.id == story_id))).mappings().one_or_none()
    return _story(row) if row else None


async def states(tx: Transaction, story_ids: Collection[UUID]) -> dict[UUID, State]:
    """Those of the stories that exist."""
    query = select(stories.c.id, stories.c.state).where(stories.c.id.in_(story_ids), stories.c.deleted_at.is_(None))
    return {row.id: State(row.state) for row in await tx.execute(query)}


async def find_by_request(tx: Transaction, owner_id: UUID, request_id: str) -> tuple[Story, bytes] | None:
    """The story and the digest of the wish it was requested with."""
    query = _stories().where(stories.c.owner_id == owner_id, stories.c.request_id == request_id)
    row = (await tx.execute(query)).mappings().one_or_none()
    return (_story(row), row["request_digest"]) if row else None


async def page(tx: Transaction, owner_id: UUID, state: State | None, request: PageRequest) -> Sequence[Story]:
    """Newest first, one more than asked for when there are more."""
    query = _stories().where(stories.c.owner_id == owner_id).order_by(stories.c.id.desc()).limit(request.size + 1)
    if state:
        query = query.where(stories.c.state == state)
    if request.before:
        query = query.where(stories.c.id < request.before)
    return [_story(row) for row in (await tx.execute(query)).mappings()]


async def cancel(tx: Transaction, story_id: UUID, *, seen: tuple[int, str] | None = None, now: datetime) -> bool:
    """False when the story is not unfinished. Cancelling or completing, what comes first decides; the other changes nothing.

    `seen` is an attempt and its words as watchers know them, usually some more than the last checkpoint.
    """
    values: dict[str, Any] = {"state": State.CANCELLED, "completed_at": now, "leased_until": None}
    if seen:
        attempt, text = seen
        more = and_(stories.c.attempt == attempt, func.length(stories.c.text) < len(text))
        values["text"] = case((more, text), else_=stories.c.text)
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


async def begin_attempt(
    tx: Transaction, story_id: UUID, *, writer: str, model: str, lease: timedelta, now: datetime
) -> Story | None:
    """Starts the next attempt at a queued story or at one whose worker's lease has ended; None when neither is the case.

    Title and text are those of the last checkpoint: go on from there, or `start_over`.
    """
    abandoned = (stories.c.state == State.RUNNING) & (stories.c.leased_until < func.now())
    statement = (
        update(stories)
        .where(stories.c.id == story_id, or_(stories.c.state == State.QUEUED, abandoned))
        .values(
            # An abandoned attempt killed its worker, so it counts as a failure; one that was handed back does not.
            failures=stories.c.failures + cast(stories.c.state == State.RUNNING, Integer),
            state=State.RUNNING,
            attempt=stories.c.attempt + 1,
            writer=writer,
            model=model,
            started_at=now,
            leased_until=func.now() + lease,
        )
    )
    return await find(tx, story_id) if (await tx.execute(statement)).rowcount else None


async def lease_left(tx: Transaction, story_id: UUID) -> timedelta | None:
    """How long the running attempt's lease still lasts; None when no attempt is running."""
    query = select(stories.c.leased_until - func.now()).where(
        stories.c.id == story_id, stories.c.state == State.RUNNING
    )
    left: timedelta | None = (await tx.execute(query)).scalar_one_or_none()
    return left


async def start_over(tx: Transaction, story_id: UUID, attempt: int) -> None:
    await _update_attempt(tx, story_id, attempt, title="", text="")


async def renew_lease(
    tx: Transaction, story_id: UUID, attempt: int, lease: timedelta, *, checkpoint: str | None = None
) -> bool:
    """False when the attempt is not the running one any more. `checkpoint` is the text so far, where it has grown."""
    text = {} if checkpoint is None else {"text": checkpoint}
    return await _update_attempt(tx, story_id, attempt, leased_until=func.now() + lease, **text)


async def save_title(tx: Transaction, story_id: UUID, attempt: int, title: str) -> bool:
    return await _update_attempt(tx, story_id, attempt, title=title)


async def complete(
    tx: Transaction, story_id: UUID, attempt: int, *, title: str, text: str, tokens: tuple[int, int], now: datetime
) -> bool:
    """False when the attempt is not the running one any more."""
    return await _update_attempt(
        tx,
        story_id,
        attempt,
        state=State.COMPLETED,
        title=title,
        text=text,
        prompt_tokens=tokens[0],
        completion_tokens=tokens[1],
        completed_at=now,
        leased_until=None,
    )


async def fail(tx: Transaction, story_id: UUID, attempt: int, reason: str, *, text: str, now: datetime) -> bool:
    """The text is what watchers have seen."""
    return await _update_attempt(
        tx, story_id, attempt, state=State.FAILED, failure_reason=reason, text=text, completed_at=now, leased_until=None
    )


async def requeue(tx: Transaction, story_id: UUID, attempt: int, *, text: str, failed: bool) -> bool:
    """Puts the story back into the queue after a passing failure, or, not `failed`, when its worker leaves.

    The text is the checkpoint for the next attempt. False when the attempt is not the running one any more.
    """
    return await _update_attempt(
        tx,
        story_id,
        attempt,
        state=State.QUEUED,
        text=text,
        failures=stories.c.failures + int(failed),
        leased_until=None,
    )


async def lock_undispatched(tx: Transaction, older_than: timedelta, limit: int) -> Sequence[UUID]:
    """Unfinished stories that nobody holds and whose dispatch is long past, marked as dispatched again."""
    unheld = or_(
        stories.c.state == State.QUEUED, (stories.c.state == State.RUNNING) & (stories.c.leased_until < func.now())
    )
    lost = (
        select(stories.c.id)
        .where(
            stories.c.state.in_(_UNFINISHED),
            unheld,
            stories.c.dispatched_at < func.now() - older_than,
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
    statement = (
        update(stories)
        .where(stories.c.id == story_id, stories.c.attempt == attempt, stories.c.state == State.RUNNING)
        .values(**values)
    )
    return (await tx.execute(statement)).rowcount == 1


def _count(rows: Select[Any]) -> ScalarSelect[int]:
    """Of a limited query: whatever there is, no more is looked at."""
    return select(func.count()).select_from(rows.subquery()).scalar_subquery()


def _stories() -> Select[Any]:
    ahead = stories.alias("ahead")
    position = (
        select(func.count())
        .where(ahead.c.state == State.QUEUED, ahead.c.id <= stories.c.id, stories.c.state == State.QUEUED)
        .scalar_subquery()
    )
    return select(stories, position.label("queue_position")).where(stories.c.deleted_at.is_(None))


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
