"""Deliveries and their steps as administrators ask for them, and what they and bounces change about them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, delete, func, select, tuple_, union_all, update

from kit.data.database import Transaction
from kit.data.paging import PageRequest

from ..model.deliveries import UNFINISHED, Channel, Decision, DeliveryState, Step
from ..model.records import DeliveryQuery, DeliveryRecord, StepRecord
from ..tables import deliveries, delivery_steps, mails
from .deliveries import add_step, notify_workers

BOUNCED = "BOUNCED"
"""Reason of a mail that came back."""

_BY_ADMINISTRATOR = "SETTLED_BY_ADMINISTRATOR"
_STEPS_SHOWN = 500

_row, _step = deliveries.c, delivery_steps.c
_RECORD = select(*(_row[field.name] for field in fields(DeliveryRecord)))
_MAIL = _RECORD.where(_row.channel == Channel.EMAIL, _row.target == "")

_TOLD = union_all(
    select(_step.event_id, _step.user_id, _step.occurred_at),
    select(mails.c.event_id, mails.c.user_id, mails.c.created_at),
).subquery("told")
"""All that tells something about an event."""

Position = tuple[datetime, UUID]
"""When the first step about an event was taken, and the event."""


async def page(tx: Transaction, query: DeliveryQuery, request: PageRequest) -> Sequence[DeliveryRecord]:
    """Deliveries, newest first: one more than `size` if there are more."""
    wanted: list[ColumnElement[bool]] = []
    if query.user_id:
        wanted.append(_row.user_id == query.user_id)
    if query.event_id:
        wanted.append(_row.event_id == query.event_id)
    if query.state:
        wanted.append(_row.state == query.state)
    if query.since:
        wanted.append(_row.created_at >= query.since)
    if query.before:
        wanted.append(_row.created_at < query.before)
    if query.target:
        # As the index of targets has it, for Postgres to use that.
        wanted += [_row.target == query.target, _row.target != ""]
    if request.before:
        wanted.append(_row.id < request.before)
    found = _RECORD.where(*wanted).order_by(_row.id.desc()).limit(request.size + 1)
    return [_record(row) for row in (await tx.execute(found)).mappings()]


async def find_mail(tx: Transaction, event_id: UUID) -> DeliveryRecord | None:
    """The event's mail."""
    row = (await tx.execute(_MAIL.where(_row.event_id == event_id))).mappings().one_or_none()
    return _record(row) if row else None


async def lock(tx: Transaction, delivery_id: UUID) -> DeliveryRecord | None:
    row = (await tx.execute(_RECORD.where(_row.id == delivery_id).with_for_update())).mappings().one_or_none()
    return _record(row) if row else None


async def of_events(tx: Transaction, event_ids: Collection[UUID]) -> Sequence[DeliveryRecord]:
    """All deliveries of these events, in the order of their decision."""
    found = _RECORD.where(_row.event_id.in_(event_ids)).order_by(_row.id)
    return [_record(row) for row in (await tx.execute(found)).mappings()]


async def explained_events(
    tx: Transaction, query: DeliveryQuery, size: int, after: Position | None
) -> Sequence[tuple[UUID, datetime]]:
    """Events with steps or a former mail, and the time of the first one, newest first: one more than `size` if there are more."""
    told = _TOLD.c
    begun = func.min(told.occurred_at)
    in_span: list[ColumnElement[bool]] = []
    if query.since:
        in_span.append(told.occurred_at >= query.since)
    if query.before:
        in_span.append(told.occurred_at < query.before)
    events = select(told.event_id, begun.label("begun")).group_by(told.event_id)
    if query.event_id:
        events = events.where(told.event_id == query.event_id)
    if query.user_id:
        events = events.where(told.user_id == query.user_id)
    if in_span:
        events = events.having(func.count().filter(*in_span) > 0)
    if after:
        events = events.having(tuple_(begun, told.event_id) < after)
    events = events.order_by(begun.desc(), told.event_id.desc()).limit(size + 1)
    return [(row.event_id, row.begun) for row in await tx.execute(events)]


async def steps(tx: Transaction, event_ids: Collection[UUID]) -> Sequence[tuple[UUID, StepRecord]]:
    """The steps of these events, oldest first: of more than `_STEPS_SHOWN` of one event the first and the last ones."""
    from_first = func.row_number().over(partition_by=_step.event_id, order_by=_step.id)
    from_last = func.row_number().over(partition_by=_step.event_id, order_by=_step.id.desc())
    numbered = (
        select(*delivery_steps.c, from_first.label("from_first"), from_last.label("from_last"))
        .where(_step.event_id.in_(event_ids))
        .subquery()
    )
    half = _STEPS_SHOWN // 2
    shown = select(numbered).where((numbered.c.from_first <= half) | (numbered.c.from_last <= half))
    return [
        (row["event_id"], _step_record(row))
        for row in (await tx.execute(shown.order_by(numbered.c.occurred_at, numbered.c.id))).mappings()
    ]


async def bounce(tx: Transaction, mail: DeliveryRecord, code: str, now: datetime) -> None:
    """Record that a mail came back. One that is still to be tried keeps its state: its next attempt looks for suppressions."""
    returned = (
        update(deliveries)
        .where(_row.id == mail.id, _row.state.in_((DeliveryState.SENT, DeliveryState.UNKNOWN)))
        .values(state=DeliveryState.FAILED, reason=BOUNCED, answer=code, event=None, changed_at=now)
    )
    if (await tx.execute(returned)).rowcount:
        await _add_step(tx, mail, now, DeliveryState.FAILED, f"{BOUNCED} {code}".strip())


async def settle(
    tx: Transaction, unknown: DeliveryRecord, state: DeliveryState, now: datetime, *, actor: UUID, reason: str
) -> None:
    """Record what an administrator found out about a delivery of unknown outcome, which is locked."""
    settled = update(deliveries).where(_row.id == unknown.id)
    await tx.execute(settled.values(state=state, reason=_BY_ADMINISTRATOR, event=None, changed_at=now))
    await _add_step(tx, unknown, now, state, f"{_BY_ADMINISTRATOR} {actor}: {reason}")


async def resend(tx: Transaction, ended: DeliveryRecord, now: datetime, *, why: str) -> bool:
    """Queue a delivery that has ended again, which is locked. False if its content is not there any more.

    `why` says by whom, and for what reason.
    """
    again = update(deliveries).where(_row.id == ended.id, _row.event.is_not(None))
    fresh = {"setbacks": 0, "unsettled": 0, "leased_until": None}
    queued = again.values(state=DeliveryState.QUEUED, reason="", due_at=now, changed_at=now, **fresh)
    if not (await tx.execute(queued)).rowcount:
        return False
    await _add_step(tx, ended, now, Decision.RESENT, why)
    await notify_workers(tx, ended.channel)
    return True


async def forget_events(tx: Transaction, now: datetime) -> int:
    """Delete the content of what has ended and cannot be sent again, because its time is over. Returns how many."""
    over = (
        update(deliveries)
        .where(_row.state.not_in(UNFINISHED), _row.event.is_not(None), _row.expires_at <= now)
        .values(event=None)
    )
    return (await tx.execute(over)).rowcount


async def prune(tx: Transaction, before: datetime, limit: int) -> bool:
    """Delete some of the ended deliveries and steps from before the time, the oldest first. True when there may be more.

    Ids grow with time, so only the oldest rows are looked at, however many there are.
    """
    ended = _row.created_at < before, _row.state.not_in(UNFINISHED)
    steps = select(_step.id).where(_step.occurred_at < before).order_by(_step.id).limit(limit)
    oldest = select(_row.id).where(*ended).order_by(_row.id).limit(limit)
    gone = [
        (await tx.execute(delete(delivery_steps).where(_step.id.in_(steps)))).rowcount,
        (await tx.execute(delete(deliveries).where(_row.id.in_(oldest)))).rowcount,
    ]
    return limit in gone


async def _add_step(
    tx: Transaction, of: DeliveryRecord, now: datetime, decision: Decision | DeliveryState, detail: str
) -> None:
    await add_step(tx, Step(of.event_id, Channel(of.channel), of.user_id, now, decision, detail[:400], of.target))


def _record(row: Any) -> DeliveryRecord:
    return DeliveryRecord(**{**row, "state": DeliveryState(row["state"])})


def _step_record(row: Any) -> StepRecord:
    return StepRecord(**{field.name: row[field.name] for field in fields(StepRecord)})
