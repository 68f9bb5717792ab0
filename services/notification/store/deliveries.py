"""Deliveries: their rows, their leases and their steps. What attempts record is in `attempts`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import (
    DateTime,
    Float,
    Integer,
    Text,
    Uuid,
    bindparam,
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
from kit.data.given_rows import GivenRows
from kit.data.prepared import Prepared

from ..model.deliveries import (
    SUPERSEDED,
    UNFINISHED,
    WEBHOOKS,
    Channel,
    Decision,
    Delivery,
    DeliveryState,
    NewDelivery,
    Step,
)
from ..tables import deliveries, delivery_steps

WAKE = "notification_deliveries"
"""The channel on which a NOTIFY wakes all workers when deliveries are due that one of them has no room for."""
WAKE_FOR_WEBHOOKS = "notification_webhooks"
"""The same for deliveries by webhook, which have a loop of their own and are all written for whoever has room."""

WEBHOOK_DISABLED = "WEBHOOK_DISABLED"
"""Reason of a delivery to a webhook that is disabled."""

# Built once, because every delivery runs them and building one takes longer than sending it to Postgres.

_row, _step = deliveries.c, delivery_steps.c
_STEP_COLUMNS = ["event_id", "channel", "target", "user_id", "occurred_at", "decision", "detail"]
_now = bindparam("now", type_=DateTime(timezone=True))


def steps_of(changed: CTE, name: str = "steps") -> CTE:
    """Adds a step at the time `now` for each changed delivery whose `decision` is not empty."""
    steps = select(
        changed.c.event_id,
        changed.c.channel,
        changed.c.target,
        changed.c.user_id,
        _now,
        changed.c.decision,
        changed.c.detail,
    ).where(changed.c.decision != "")
    return insert(delivery_steps).from_select(_STEP_COLUMNS, steps).cte(name)


_NEW = tuple(field.name for field in fields(NewDelivery))
changed_columns = (_row.event_id, _row.channel, _row.target, _row.user_id)
"""What `steps_of` needs of a changed delivery, beside `decision` and `detail`."""

_new = GivenRows(
    "new",
    **{name: _row[name].type for name in _NEW},
    lease=Float,
    decision=Text,
    detail=Text,
)
_inserted = (
    upsert(deliveries)
    .from_select(
        [*_NEW, "changed_at", "answer", "failures", "leased_until"],
        select(
            *(_new.rows.c[name] for name in _NEW),
            _new.rows.c.created_at,
            literal(""),
            literal(0),
            func.now() + func.make_interval(0, 0, 0, 0, 0, 0, _new.rows.c.lease),  # NULL without a lease.
        ).order_by(_new.rows.c.event_id),
    )
    .on_conflict_do_nothing()
    .returning(_row.id, *changed_columns)
    .cte("inserted")
)
_described = (
    select(_inserted, _new.rows.c.decision, _new.rows.c.detail)
    .join(_new.rows, _new.rows.c.id == _inserted.c.id)
    .cte("described")
)
_outdated = (
    select(_row.id)
    .where(
        _row.series == _new.rows.c.series,
        tuple_(_row.occurred_at, _row.event_id) < tuple_(_new.rows.c.occurred_at, _new.rows.c.event_id),
        _row.state == DeliveryState.QUEUED,
    )
    .order_by(_row.id)
    .with_for_update(of=deliveries)
    .cte("outdated")
)
_superseded = (
    update(deliveries)
    .where(_row.id.in_(select(_outdated.c.id)), _row.state == DeliveryState.QUEUED)
    .values(
        state=DeliveryState.SUPPRESSED,
        reason=SUPERSEDED,
        answer="",
        event=None,
        leased_until=None,
        changed_at=_now,
    )
    .returning(
        *changed_columns, literal(DeliveryState.SUPPRESSED).label("decision"), literal(SUPERSEDED).label("detail")
    )
    .cte("superseded")
)
_inserting = select(_inserted.c.id).add_cte(steps_of(_described))
_INSERT = Prepared(_inserting)
_INSERT_INTO_SERIES = Prepared(_inserting.add_cte(steps_of(_superseded, "ends")))
"""Inserts deliveries, and ends what is queued before them in their series.

Those that are inserted at once do not see one another: what begins to send looks once more.
"""
_ADD_STEP = insert(delivery_steps)
_repeated = select(
    *changed_columns, _now, literal(Decision.DEDUPLICATED).label("decision"), literal("").label("detail")
).where(
    _row.event_id == func.any(bindparam("events", type_=ARRAY(Uuid))),
    _row.channel == func.any(bindparam("channels", type_=ARRAY(Text))),
)
_ADD_REPEATED = insert(delivery_steps).from_select(_STEP_COLUMNS, _repeated)

_lease = func.now() + func.make_interval(0, 0, 0, 0, 0, 0, bindparam("lease", type_=Float))
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
    0, 0, 0, 0, 0, 0, func.least(1800, _life_seconds / 20, func.power(2, func.least(_row.unsettled + 1, 20)))
)
_CLAIM = Prepared(
    update(deliveries)
    .where(_row.id.in_(union_all(select(_urgent.c.id), select(_others.c.id))))
    .values(attempts=_row.attempts + 1, unsettled=_row.unsettled + 1, leased_until=_lease, due_at=_now + _after_a_crash)
    .returning(*(_row[field.name] for field in fields(Delivery)))
)
"""Claims what is due, codes and warnings first.

`due_at` is moved on by the claims without an outcome, so that what kills its workers comes back more and more seldom.
"""

_attempt = update(deliveries).where(
    _row.id == bindparam("delivery", type_=Uuid), _row.attempts == bindparam("number", type_=Integer)
)
_unfinished = _row.state.in_(UNFINISHED)
_HAND_BACK = _attempt.where(_unfinished).values(
    state=DeliveryState.QUEUED, leased_until=None, unsettled=0, due_at=_now, changed_at=_now
)
_held = select(_row.id).where(
    _row.id == func.any(bindparam("ids", type_=ARRAY(Uuid))), _unfinished, _row.leased_until.is_not(None)
)
_RENEW = (
    update(deliveries)
    .where(_row.id.in_(select(_held.with_for_update(skip_locked=True).cte("held").c.id)))
    .values(leased_until=_lease)
    .returning(_row.id, _row.attempts)
)
"""Passes over what is locked: an attempt that begins or ends at the moment gets or needs no lease by this statement, and
waiting for one row with others locked could deadlock. Passes over what has no lease any more: its attempt was settled a moment
ago, and a lease would keep other workers from the next one."""
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


@dataclass(frozen=True, slots=True)
class Insertion:
    """A delivery that is to be inserted with its first step."""

    delivery: NewDelivery
    decision: str
    detail: str
    lease: timedelta | None = None
    """Claims it for so long."""

    @property
    def due_for_others(self) -> bool:
        """Whether other workers may have to be told of it."""
        return self.lease is None and self.delivery.state is DeliveryState.QUEUED


async def insert_new(tx: Transaction, insertions: Sequence[Insertion], now: datetime) -> Collection[UUID]:
    """Insert deliveries with their first steps, and end what is queued before them in their series.

    Returns the ids of those that are new. The others' events have one on this channel to this target already.
    """
    values = _new.values(
        {name: getattr(each.delivery, name) for name in _NEW}
        | {
            "decision": each.decision,
            "detail": each.detail,
            "lease": each.lease.total_seconds() if each.lease else None,
        }
        for each in insertions
    )
    statement = _INSERT_INTO_SERIES if any(each.delivery.series for each in insertions) else _INSERT
    return {row["id"] for row in await statement.execute(tx, {**values, "now": now})}


async def add_step(tx: Transaction, *steps: Step) -> None:
    """Record decisions that change no row in `deliveries`."""
    if steps:
        await tx.execute(_ADD_STEP, [{name: getattr(step, name) for name in _STEP_COLUMNS} for step in steps])


async def add_repeated(tx: Transaction, event_ids: Collection[UUID], channels: Collection[str], now: datetime) -> None:
    """Record of each delivery of these events on these channels that its event came again."""
    await tx.execute(_ADD_REPEATED, {"events": list(event_ids), "channels": list(channels), "now": now})


async def notify_workers(tx: Transaction, channel: str = Channel.EMAIL) -> None:
    """Wake the loops of all workers that deliver on the channel, once the transaction is committed."""
    await tx.execute(_NOTIFY, {"name": WAKE_FOR_WEBHOOKS if channel in WEBHOOKS else WAKE})


async def claim(
    tx: Transaction, channels: Collection[str], most: int, now: datetime, lease: timedelta
) -> Sequence[Delivery]:
    """Claim at most so many due deliveries for the length of the lease, and begin an attempt of each."""
    values = {"channels": list(channels), "most": most, "now": now, "lease": lease.total_seconds()}
    return [Delivery(**row) for row in await _CLAIM.execute(tx, values)]


async def hand_back(tx: Transaction, delivery: Delivery, now: datetime) -> None:
    """Return a claimed delivery to the other workers at once, unless one of them has begun another attempt."""
    await tx.execute(_HAND_BACK, {"delivery": delivery.id, "number": delivery.attempts, "now": now})


async def renew(tx: Transaction, ids: Collection[UUID], lease: timedelta) -> Mapping[UUID, int]:
    """Extend the leases. Returns the number of the last attempt of each delivery that has one and is not locked."""
    values = {"ids": list(ids), "lease": lease.total_seconds()}
    return {row.id: row.attempts for row in await tx.execute(_RENEW, values)}


async def lock_abandoned(tx: Transaction, channels: Collection[str], most: int) -> Sequence[Delivery]:
    """Lock deliveries on these channels whose worker died while it handed them over."""
    values = {"channels": list(channels), "most": most}
    return [Delivery(**row) for row in (await tx.execute(_LOCK_ABANDONED, values)).mappings()]
