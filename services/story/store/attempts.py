"""Attempts at writing a story: their beginning, lease and end.

The attempt's number fences every write. Leases use the database's clock, the only clock that workers on several machines share.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    Integer,
    Interval,
    String,
    and_,
    bindparam,
    case,
    cast,
    exists,
    func,
    literal,
    or_,
    select,
    update,
)

from kit.data.database import Transaction
from kit.data.prepared import Prepared
from kit.events.erasure import erased_subjects

from ..model import Checkpoint, State, Story
from ..tables import stories
from .stories import UNFINISHED, story_of

_WRITER_LOCKS = 0x5752
"""The first key of these two-key advisory locks. An arbitrary constant that keeps them apart from other two-key locks."""

_BEGIN = Prepared(
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
        # An attempt whose lease has expired has probably killed its worker, so it counts as a failure; `uncount_failure` takes
        # that back if the worker is alive. An attempt that was handed back is QUEUED and does not count.
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

# The row's lock orders these updates against an erasure: its DELETE waits for them and then deletes their outbox rows too.
_END = _RUNNING.where(~exists().where(erased_subjects.c.subject_id == stories.c.owner_id)).values(
    title=bindparam("new_title"), text=bindparam("new_text"), completed_at=bindparam("now"), leased_until=None
)
_COMPLETE = Prepared(
    _END.values(
        state=State.COMPLETED, prompt_tokens=bindparam("prompted"), completion_tokens=bindparam("completed")
    ).returning(stories.c.id)
)
_FAIL = _END.values(state=State.FAILED, failure_reason=bindparam("why"))


async def lock_beginnings(tx: Transaction, writer: str) -> int:
    """Serialize the transactions that begin attempts with the writer, and return how many attempts are running."""
    await tx.execute(
        select(func.pg_advisory_xact_lock(cast(_WRITER_LOCKS, Integer), func.hashtext(cast(writer, String))))
    )
    running = select(func.count()).where(
        stories.c.state == State.RUNNING, stories.c.writer == writer, stories.c.leased_until >= func.now()
    )
    return int((await tx.execute(running)).scalar_one())


async def begin(
    tx: Transaction, story_id: UUID, *, writer: str, model: str, lease: timedelta, now: datetime
) -> Story | None:
    """Begin the next attempt at a story that is queued and available, or whose lease has expired; otherwise None.

    Title and text are the last checkpoint: the caller continues from it or calls `start_over`.
    """
    values = {"story": story_id, "by": writer, "with": model, "lease": lease, "now": now}
    row = await _BEGIN.one_or_none(tx, values)
    return story_of(row) if row else None


async def held_for(tx: Transaction, story_id: UUID) -> timedelta | None:
    """The time until an attempt may begin: the rest of the running lease or of the pause. None for a final or absent story."""
    until = case((stories.c.state == State.RUNNING, stories.c.leased_until), else_=stories.c.available_at)
    query = select(func.coalesce(until, func.now()) - func.now()).where(
        stories.c.id == story_id, stories.c.state.in_(UNFINISHED)
    )
    held: timedelta | None = (await tx.execute(query)).scalar_one_or_none()
    return held


async def start_over(tx: Transaction, story_id: UUID, attempt: int) -> None:
    """Drop the checkpoint, if the attempt is still the running one."""
    await _update(tx, story_id, attempt, title="", text="")


async def renew_lease(
    tx: Transaction, story_id: UUID, attempt: int, lease: timedelta, *, checkpoint: Checkpoint | None = None
) -> bool:
    """Renew the lease; save the checkpoint if given. False when the attempt is no longer the running one."""
    saved = {} if checkpoint is None else _saved(checkpoint)
    return await _update(tx, story_id, attempt, leased_until=func.now() + lease, **saved)


async def complete(
    tx: Transaction, story_id: UUID, attempt: int, written: Checkpoint, *, tokens: tuple[int, int], now: datetime
) -> bool:
    """Complete the story; `tokens` counts those of the prompt and those of the text.

    False when the attempt is no longer the running one, or the owner is erased.
    """
    values = {**_ending(story_id, attempt, written, now), "prompted": tokens[0], "completed": tokens[1]}
    return await _COMPLETE.one_or_none(tx, values) is not None


async def fail(
    tx: Transaction, story_id: UUID, attempt: int, reason: str, written: Checkpoint, *, now: datetime
) -> bool:
    """Fail the story and keep the text that watchers have seen. False as in `complete`."""
    values = {**_ending(story_id, attempt, written, now), "why": reason}
    return (await tx.execute(_FAIL, values)).rowcount == 1


async def requeue(
    tx: Transaction, story_id: UUID, attempt: int, checkpoint: Checkpoint, *, pause: timedelta | None
) -> bool:
    """Put the story back into the queue. A `pause` counts the attempt as failed; None means a shutdown and counts nothing.

    The next attempt may continue from the checkpoint. False when the attempt is no longer the running one.
    """
    return await _update(
        tx,
        story_id,
        attempt,
        state=State.QUEUED,
        **_saved(checkpoint),
        failures=stories.c.failures + (0 if pause is None else 1),
        available_at=func.now() + (pause or timedelta(0)),
        leased_until=None,
    )


async def uncount_failure(tx: Transaction, story_id: UUID, attempt: int) -> None:
    """Take back the failure that `begin` counted when it overtook the attempt, because the attempt's worker is alive."""
    overtaken = update(stories).where(
        stories.c.id == story_id,
        stories.c.attempt > attempt,
        stories.c.failures > 0,
        stories.c.state.in_(UNFINISHED),
    )
    await tx.execute(overtaken.values(failures=stories.c.failures - 1))


async def lock_undispatched(
    tx: Transaction, older_than: timedelta, limit: int, *, before: datetime | None = None
) -> Sequence[UUID]:
    """Lock lost stories and mark them as dispatched now: unfinished, without a live lease, and due `older_than` ago.

    With `before`, the time `older_than` counts back from it if it is earlier than now. Skips locked rows; at most `limit` stories.
    """
    due_at = func.greatest(stories.c.dispatched_at, stories.c.available_at)
    unheld = or_(
        stories.c.state == State.QUEUED, (stories.c.state == State.RUNNING) & (stories.c.leased_until < func.now())
    )
    lost = (
        select(stories.c.id)
        .where(
            stories.c.state.in_(UNFINISHED),
            unheld,
            due_at < func.least(func.now(), before) - older_than,
        )
        .order_by(stories.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    statement = update(stories).where(stories.c.id.in_(lost)).values(dispatched_at=func.now()).returning(stories.c.id)
    return list((await tx.execute(statement)).scalars())


async def _update(tx: Transaction, story_id: UUID, attempt: int, **values: Any) -> bool:
    """Update the story if the attempt is the running one (the fence); False otherwise."""
    return (await tx.execute(_RUNNING.values(values), {"story": story_id, "number": attempt})).rowcount == 1


def _ending(story_id: UUID, attempt: int, written: Checkpoint, now: datetime) -> dict[str, Any]:
    """The parameters of `_END`."""
    return {
        "story": story_id,
        "number": attempt,
        "new_title": written.title,
        "new_text": written.text,
        "now": now,
    }


def _saved(checkpoint: Checkpoint) -> dict[str, str]:
    return {"title": checkpoint.title, "text": checkpoint.text}
