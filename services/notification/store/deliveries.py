"""Deliveries: their rows, their leases and their steps."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    DateTime,
    Float,
    Integer,
    LargeBinary,
    Text,
    Uuid,
    bindparam,
    case,
    cast,
    exists,
    func,
    insert,
    literal,
    select,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.sql.selectable import CTE

from kit.data.database import Transaction

from ..model.deliveries import SUPERSEDED, UNFINISHED, Delivery, DeliveryState, NewDelivery, Step
from ..tables import deliveries, delivery_steps

WAKE = "notification_deliveries"
"""The channel on which a NOTIFY wakes all workers when deliveries are due that one of them has no room for."""
WAKE_FOR_WEBHOOKS = "notification_webhooks"
"""The same for deliveries by webhook, which have a loop of their own and are all written for whoever has room."""

# Built once, because every delivery runs them and building one takes longer than sending it to Postgres.

_row, _step = deliveries.c, delivery_steps.c
_STEP_COLUMNS = ["event_id", "channel", "target", "user_id", "occurred_at", "decision", "detail"]


def _with_step(changed: CTE) -> Any:
    """The statement that changes deliveries and adds a step for each, unless `decision` is empty; returns their number."""
    decision, detail = bindparam("decision", type_=Text), bindparam("detail", type_=Text)
    return select(func.count()).select_from(changed).add_cte(_step_of(changed, decision, detail, "step"))


def _step_of(changed: CTE, decision: ColumnElement[str], detail: ColumnElement[str], name: str) -> CTE:
    """Adds a step for each of the changed deliveries, unless the decision is empty."""
    told = (changed.c.event_id, changed.c.channel, changed.c.target, changed.c.user_id)
    now = bindparam("now", type_=DateTime(timezone=True))
    steps = select(*told, now, decision, detail).where(decision != "")
    return insert(delivery_steps).from_select(_STEP_COLUMNS, steps).cte(name)


_lease = func.now() + func.make_interval(0, 0, 0, 0, 0, 0, bindparam("lease", type_=Float))
"""NULL without a lease."""

_NEW = tuple(field.name for field in fields(NewDelivery))
_returned = (_row.event_id, _row.channel, _row.target, _row.user_id)

_INSERT = _with_step(
    upsert(deliveries)
    .values(
        {name: bindparam(f"new_{name}", type_=_row[name].type) for name in _NEW}
        | {"changed_at": bindparam("new_created_at"), "answer": "", "failures": 0, "leased_until": _lease}
    )
    .on_conflict_do_nothing()
    .returning(*_returned)
    .cte("inserted")
)
_superseded = (
    update(deliveries)
    .where(
        _row.series == bindparam("new_series"),
        tuple_(_row.occurred_at, _row.event_id) < tuple_(bindparam("new_occurred_at"), bindparam("new_event_id")),
        _row.state == DeliveryState.QUEUED,
    )
    .values(
        state=DeliveryState.SUPPRESSED,
        reason=SUPERSEDED,
        answer="",
        event=None,
        leased_until=None,
        changed_at=bindparam("new_created_at"),
    )
    .returning(*_returned)
    .cte("superseded")
)
_INSERT_INTO_SERIES = _INSERT.add_cte(
    _superseded, _step_of(_superseded, literal(DeliveryState.SUPPRESSED), literal(SUPERSEDED), "end")
)
"""Inserts a delivery, and ends what is queued before it in its series.

Two transactions at once do not see what the other inserts: `_BEGIN_SENDING` looks once more.
"""

_ADD_STEP = insert(delivery_steps)

_now = bindparam("now", type_=DateTime(timezone=True))
_most = bindparam("most", type_=Integer)
_due = (
    select(_row.id)
    .where(
        _row.state == DeliveryState.QUEUED,
        _row.channel == func.any(bindparam("channels", type_=ARRAY(Text))),
        _row.due_at <= _now,
        func.coalesce(_row.leased_until < func.now(), True),
    )
    .order_by(_row.due_at)
    .with_for_update(skip_locked=True)
)
_urgent = _due.where(_row.urgent).limit(_most).cte("urgent")
_room = _most - select(func.count()).select_from(_urgent).scalar_subquery()
_others = _due.where(~_row.urgent).limit(_room).cte("others")
_life_seconds = func.extract("epoch", _row.expires_at - _row.created_at)
_after_a_crash = func.make_interval(
    0, 0, 0, 0, 0, 0, func.least(1800, _life_seconds / 20, func.power(2, func.least(_row.attempts, 20)))
)
_CLAIM = (
    update(deliveries)
    .where(_row.id.in_(union_all(select(_urgent.c.id), select(_others.c.id))))
    .values(attempts=_row.attempts + 1, leased_until=_lease, due_at=_now + _after_a_crash)
    .returning(*(_row[field.name] for field in fields(Delivery)))
)
"""Claims what is due, codes and warnings first.

`due_at` is moved on as after a failure, so that what kills its worker comes back more and more seldom.
"""

_attempt = update(deliveries).where(
    _row.id == bindparam("delivery", type_=Uuid), _row.attempts == bindparam("number", type_=Integer)
)
_later = deliveries.alias("later")
_is_superseded = exists().where(
    _later.c.series == _row.series,
    tuple_(_later.c.occurred_at, _later.c.event_id) > tuple_(_row.occurred_at, _row.event_id),
)
_BEGIN_SENDING = _attempt.where(_row.state == DeliveryState.QUEUED, ~_is_superseded).values(
    state=DeliveryState.SENDING, leased_until=_lease, changed_at=_now
)
_IS_SUPERSEDED = select(_is_superseded).where(_row.id == bindparam("delivery", type_=Uuid))
_unfinished = _row.state.in_(UNFINISHED)
_CONTENT_KEPT = (DeliveryState.QUEUED, DeliveryState.UNKNOWN)
"""States in which a delivery may be tried again: an administrator may have one of unknown outcome sent once more."""
_outcome = bindparam("outcome", type_=Text)
_SETTLE = _with_step(
    _attempt.where(_unfinished)
    .values(
        state=_outcome,
        reason=bindparam("why", type_=Text),
        answer=bindparam("reply", type_=Text),
        failures=_row.failures + bindparam("failed", type_=Integer),
        unknowns=_row.unknowns + bindparam("unclear", type_=Integer),
        due_at=bindparam("due", type_=DateTime(timezone=True)),
        event=case((_outcome.in_(_CONTENT_KEPT), _row.event), else_=cast(None, LargeBinary)),
        leased_until=None,
        changed_at=_now,
    )
    .returning(*_returned)
    .cte("settled")
)
_HAND_BACK = _attempt.where(_unfinished).values(
    state=DeliveryState.QUEUED, leased_until=None, due_at=_now, changed_at=_now
)
_RENEW = (
    update(deliveries)
    .where(_row.id == func.any(bindparam("ids", type_=ARRAY(Uuid))), _unfinished)
    .values(leased_until=_lease)
    .returning(_row.id, _row.attempts)
)
_LOCK_ABANDONED = (
    select(*(_row[field.name] for field in fields(Delivery)))
    .where(
        _row.state == DeliveryState.SENDING,
        _row.leased_until < func.now(),
        _row.channel == func.any(bindparam("channels", type_=ARRAY(Text))),
    )
    .limit(bindparam("most", type_=Integer))
    .with_for_update(skip_locked=True)
)
_NOTIFY = select(func.pg_notify(bindparam("name", type_=Text), ""))


async def insert_new(
    tx: Transaction, delivery: NewDelivery, *, decision: str, detail: str, lease: timedelta | None = None
) -> bool:
    """Insert a delivery with its first step, claimed for the length of the lease if one is given.

    Ends what is queued before it in its series. False if the event has one on this channel to this target already.
    """
    values = {f"new_{name}": getattr(delivery, name) for name in _NEW}
    step = {"now": delivery.created_at, "decision": decision, "detail": detail}
    seconds = {"lease": lease.total_seconds() if lease else None}
    statement = _INSERT_INTO_SERIES if delivery.series else _INSERT
    return bool((await tx.execute(statement, values | step | seconds)).scalar_one())


async def add_step(tx: Transaction, step: Step) -> None:
    """Record a decision that changes no row in `deliveries`."""
    await tx.execute(_ADD_STEP, {name: getattr(step, name) for name in _STEP_COLUMNS})


async def notify_workers(tx: Transaction, name: str = WAKE) -> None:
    """Wake all workers that listen to this channel of NOTIFY, once the transaction is committed."""
    await tx.execute(_NOTIFY, {"name": name})


async def claim(
    tx: Transaction, channels: Collection[str], most: int, now: datetime, lease: timedelta
) -> Sequence[Delivery]:
    """Claim at most so many due deliveries for the length of the lease, and begin an attempt of each."""
    values = {"channels": list(channels), "most": most, "now": now, "lease": lease.total_seconds()}
    return [Delivery(**row) for row in (await tx.execute(_CLAIM, values)).mappings()]


async def begin_sending(tx: Transaction, delivery: Delivery, now: datetime, lease: timedelta) -> bool:
    """Record that the content is about to be handed over.

    False if the attempt was overtaken, or the delivery erased or superseded.
    """
    values = {"delivery": delivery.id, "number": delivery.attempts, "now": now, "lease": lease.total_seconds()}
    return (await tx.execute(_BEGIN_SENDING, values)).rowcount == 1


async def is_superseded(tx: Transaction, delivery: Delivery) -> bool:
    """Whether a later delivery of its series makes it worthless."""
    return bool((await tx.execute(_IS_SUPERSEDED, {"delivery": delivery.id})).scalar_one_or_none())


async def settle(
    tx: Transaction,
    delivery: Delivery,
    state: DeliveryState,
    now: datetime,
    *,
    reason: str,
    answer: str,
    due_at: datetime,
    decision: str,
    unforeseen: bool = False,
    unknown: bool = False,
) -> bool:
    """Record the attempt's outcome, with a step unless `decision` is empty.

    False if a later attempt has begun, whose outcome counts instead, or the delivery was settled or erased.
    """
    values: Mapping[str, Any] = {
        "delivery": delivery.id,
        "number": delivery.attempts,
        "outcome": state,
        "why": reason,
        "reply": answer.replace("\0", "")[:200],
        "failed": int(unforeseen),
        "unclear": int(unknown),
        "due": due_at,
        "now": now,
        "decision": decision,
        "detail": " ".join(filter(None, (reason, answer)))[:200].replace("\0", ""),
    }
    return bool((await tx.execute(_SETTLE, values)).scalar_one())


async def hand_back(tx: Transaction, delivery: Delivery, now: datetime) -> None:
    """Return a claimed delivery to the other workers at once, unless one of them has begun another attempt."""
    await tx.execute(_HAND_BACK, {"delivery": delivery.id, "number": delivery.attempts, "now": now})


async def renew(tx: Transaction, ids: Collection[UUID], lease: timedelta) -> Mapping[UUID, int]:
    """Extend the leases. Returns the number of the last attempt of each delivery that is unfinished."""
    values = {"ids": list(ids), "lease": lease.total_seconds()}
    return {row.id: row.attempts for row in await tx.execute(_RENEW, values)}


async def lock_abandoned(tx: Transaction, channels: Collection[str], most: int) -> Sequence[Delivery]:
    """Lock deliveries on these channels whose worker died while it handed them over."""
    values = {"channels": list(channels), "most": most}
    return [Delivery(**row) for row in (await tx.execute(_LOCK_ABANDONED, values)).mappings()]
