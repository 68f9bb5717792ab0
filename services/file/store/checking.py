"""The rows of files that are checked. What a check finds is written only while the file still is in CHECKING."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Text, cast, exists, insert, select, update

from kit.data.database import Transaction
from kit.events.dead_letter_store import dead_letters

from ..model import CheckStep, Reason, Rendition, State
from ..tables import file_renditions, files
from . import files as rows


async def begin(tx: Transaction, file_id: UUID, step: CheckStep, *, now: datetime) -> bool:
    """Record that a worker is at this step of the file's check. False when there is nothing to check any more.

    Watches are told when the step is another one than before.
    """
    checked = (files.c.id == file_id, files.c.state == State.CHECKING, files.c.deleted_at.is_(None))
    same = update(files).where(*checked, files.c.check_step == step).values(dispatched_at=now)
    if (await tx.execute(same)).rowcount:
        return True
    return await rows.change(tx, file_id, within=[State.CHECKING], check_step=step, dispatched_at=now)


async def accept(tx: Transaction, file_id: UUID, renditions: Collection[Rendition], *, now: datetime) -> bool:
    """Make the file ready. False when it is not in CHECKING any more."""
    values = {"state": State.READY, "check_step": CheckStep.NONE, "completed_at": now, "rendered": bool(renditions)}
    if not await rows.change(tx, file_id, within=[State.CHECKING], **values):
        return False
    if renditions:
        made = [
            {
                "file_id": file_id,
                "target": each.target,
                "object_key": each.object_key,
                "width": each.width,
                "height": each.height,
                "size": each.size,
            }
            for each in renditions
        ]
        await tx.execute(insert(file_renditions), made)
    return True


async def reject(tx: Transaction, file_id: UUID, reason: Reason, *, now: datetime) -> bool:
    """Refuse the file for good. False when it is not in CHECKING any more."""
    values = {"state": State.REJECTED, "check_step": CheckStep.NONE, "reason": reason, "completed_at": now}
    return await rows.change(tx, file_id, within=[State.CHECKING], **values)


async def lock_undispatched(
    tx: Transaction, older_than: timedelta, limit: int, *, now: datetime, before: datetime | None
) -> Sequence[UUID]:
    """Lock files whose check was lost, and mark them as dispatched now: nobody has been at them for `older_than`.

    With `before`, the time counts back from it if it is earlier than now. Files with a dead letter wait for an administrator.
    """
    buried = exists().where(dead_letters.c.key == cast(files.c.id, Text), dead_letters.c.settled_at.is_(None))
    lost = (
        select(files.c.id)
        .where(
            files.c.state == State.CHECKING,
            files.c.deleted_at.is_(None),
            files.c.dispatched_at < min(now, before or now) - older_than,
            ~buried,
        )
        .order_by(files.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    statement = update(files).where(files.c.id.in_(lost)).values(dispatched_at=now).returning(files.c.id)
    return list((await tx.execute(statement)).scalars())


async def abandoned(
    tx: Transaction, limit: int, *, expired_before: datetime, now: datetime
) -> Sequence[tuple[UUID, UUID, str]]:
    """Reject files that nobody could check for so long; return them with their owners and the reason."""
    found = (
        select(files.c.id)
        .where(files.c.state == State.CHECKING, files.c.deleted_at.is_(None), files.c.expires_at < expired_before)
        .order_by(files.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    statement = (
        update(files)
        .where(files.c.id.in_(found))
        .values(
            state=State.REJECTED,
            check_step=CheckStep.NONE,
            reason=Reason.CHECK_FAILED,
            completed_at=now,
            revision=files.c.revision + 1,
        )
        .returning(files.c.id, files.c.owner_id, rows.TELL)
    )
    return [(row.id, row.owner_id, Reason.CHECK_FAILED) for row in await tx.execute(statement)]
