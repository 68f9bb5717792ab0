"""Attempts to deliver: the intent before the handover, and the outcome after it. Each statement serves many attempts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Any

from sqlalchemy import (
    Boolean,
    ColumnElement,
    DateTime,
    Float,
    FromClause,
    Integer,
    LargeBinary,
    Text,
    Uuid,
    bindparam,
    case,
    cast,
    exists,
    func,
    select,
    tuple_,
    update,
)
from sqlalchemy.sql.selectable import CTE

from kit.data.database import Transaction
from kit.data.given_rows import GivenRows
from kit.data.prepared import Prepared, Row

from ..model.deliveries import UNFINISHED, WEBHOOKS, Delivery, DeliveryState
from ..tables import deliveries, suppressions
from .deliveries import WEBHOOK_DISABLED, changed_columns, steps_of

_row = deliveries.c
_now = bindparam("now", type_=DateTime(timezone=True))
_lease = func.now() + func.make_interval(0, 0, 0, 0, 0, 0, bindparam("lease", type_=Float))
_unfinished = _row.state.in_(UNFINISHED)


def _locked(given: FromClause, *conditions: ColumnElement[bool]) -> CTE:
    """The given attempts that were not overtaken, locked in one order, so that statements about many of them never deadlock."""
    query = select(_row.id).where(_row.id == given.c.id, _row.attempts == given.c.number, *conditions)
    return query.order_by(_row.id).with_for_update(of=deliveries).cte("locked")


_beginning = GivenRows("beginning", id=Uuid, number=Integer, digest=LargeBinary)
_suppressed = (
    select(_beginning.rows.c.id).where(_beginning.rows.c.digest == suppressions.c.address_digest).cte("suppressed")
)
_later = deliveries.alias("later")
_is_superseded = exists().where(
    _later.c.series == _row.series,
    tuple_(_later.c.occurred_at, _later.c.event_id) > tuple_(_row.occurred_at, _row.event_id),
)
_queued = _row.state == DeliveryState.QUEUED
_startable = _locked(_beginning.rows, _queued, ~_is_superseded, _row.id.not_in(select(_suppressed.c.id)))
_begun = (
    update(deliveries)
    .where(
        _row.id == _beginning.rows.c.id,
        _row.attempts == _beginning.rows.c.number,
        _row.id.in_(select(_startable.c.id)),
        _queued,
    )
    .values(
        state=DeliveryState.SENDING,
        leased_until=_lease,
        changed_at=_now,
        address_digest=func.coalesce(_beginning.rows.c.digest, _row.address_digest),
    )
    .returning(_row.id, _row.attempts)
    .cte("begun")
)
_BEGIN_SENDING = Prepared(
    select(
        _beginning.rows.c.id,
        _beginning.rows.c.number,
        tuple_(_beginning.rows.c.id, _beginning.rows.c.number)
        .in_(select(_begun.c.id, _begun.c.attempts))
        .label("begun"),
        _beginning.rows.c.id.in_(select(_suppressed.c.id)).label("suppressed"),
        select(_is_superseded).where(_row.id == _beginning.rows.c.id).scalar_subquery().label("superseded"),
    )
)

_CONTENT_KEPT = (DeliveryState.QUEUED, DeliveryState.UNKNOWN)
"""States in which a delivery may be tried again: an administrator may have one of unknown outcome sent once more."""
_outcome = GivenRows(
    "outcome",
    id=Uuid,
    number=Integer,
    state=Text,
    reason=Text,
    answer=Text,
    failed=Integer,
    unclear=Integer,
    set_back=Integer,
    died=Boolean,
    due_at=DateTime(timezone=True),
    decision=Text,
    detail=Text,
)
# A message whose receiver was away for long is sent again once somebody has mended it.
_resendable = _row.channel.in_(sorted(WEBHOOKS)) & (
    (_outcome.rows.c.state == DeliveryState.FAILED)
    | ((_outcome.rows.c.state == DeliveryState.SUPPRESSED) & (_outcome.rows.c.reason == WEBHOOK_DISABLED))
)
_settled = (
    update(deliveries)
    .where(
        _row.id == _outcome.rows.c.id,
        _row.attempts == _outcome.rows.c.number,
        _row.id.in_(select(_locked(_outcome.rows, _unfinished).c.id)),
        _unfinished,
    )
    .values(
        state=_outcome.rows.c.state,
        reason=_outcome.rows.c.reason,
        answer=_outcome.rows.c.answer,
        failures=_row.failures + _outcome.rows.c.failed,
        unknowns=_row.unknowns + _outcome.rows.c.unclear,
        setbacks=_row.setbacks + _outcome.rows.c.set_back,
        unsettled=case((_outcome.rows.c.died, _row.unsettled), else_=0),
        due_at=_outcome.rows.c.due_at,
        event=case((_outcome.rows.c.state.in_(_CONTENT_KEPT) | _resendable, _row.event), else_=cast(None, LargeBinary)),
        leased_until=None,
        changed_at=_now,
    )
    .returning(_row.id, *changed_columns, _outcome.rows.c.decision, _outcome.rows.c.detail)
    .cte("settled")
)
_SETTLE = Prepared(select(_settled.c.id).add_cte(steps_of(_settled)))


class Beginning(Enum):
    """Whether the handover of an attempt may begin."""

    BEGUN = auto()
    OVERTAKEN = auto()
    """A later attempt has begun, or the delivery was erased."""
    SUPPRESSED = auto()
    """The address is suppressed. Nothing was changed."""
    SUPERSEDED = auto()
    """A later delivery of its series makes it worthless. Nothing was changed."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt that is about to hand its content over."""

    delivery: Delivery
    address_digest: bytes | None = None
    """The keyed digest of the address, by which a bounce finds the delivery; None for a channel without suppressions."""


async def begin_sending(
    tx: Transaction, attempts: Sequence[Attempt], now: datetime, lease: timedelta
) -> Sequence[Beginning]:
    """Record of each that its content is about to be handed over, unless something stands against it."""
    values = _beginning.values(
        {"id": each.delivery.id, "number": each.delivery.attempts, "digest": each.address_digest} for each in attempts
    )
    given = {**values, "now": now, "lease": lease.total_seconds()}
    # By the number too: an overtaken attempt and the later one may stand in one batch.
    found = {(row["id"], row["number"]): _beginning_of(row) for row in await _BEGIN_SENDING.execute(tx, given)}
    return [found[each.delivery.id, each.delivery.attempts] for each in attempts]


def _beginning_of(row: Row) -> Beginning:
    if row["begun"]:
        return Beginning.BEGUN
    if row["superseded"]:
        return Beginning.SUPERSEDED
    return Beginning.SUPPRESSED if row["suppressed"] else Beginning.OVERTAKEN


@dataclass(frozen=True, slots=True)
class Settlement:
    """What is to be recorded of an attempt."""

    delivery: Delivery
    state: DeliveryState
    reason: str
    answer: str
    due_at: datetime
    decision: str
    """That of the step which is added; empty: none is."""
    unforeseen: bool = False
    unknown: bool = False
    setback: bool = False
    """Whether another attempt follows because this one failed."""
    died: bool = False
    """Whether the worker died, so that the claim stays without an outcome."""


async def settle(tx: Transaction, settlements: Sequence[Settlement], now: datetime) -> None:
    """Record the outcomes of attempts, with their steps.

    Changes nothing where a later attempt has begun, whose outcome counts instead, or the delivery was settled or erased.
    """
    await _SETTLE.execute(tx, {**_outcome.values(map(_outcome_row, settlements)), "now": now})


def _outcome_row(settlement: Settlement) -> Mapping[str, Any]:
    return {
        "id": settlement.delivery.id,
        "number": settlement.delivery.attempts,
        "state": settlement.state,
        "reason": settlement.reason,
        "answer": settlement.answer.replace("\0", "")[:200],
        "failed": int(settlement.unforeseen),
        "unclear": int(settlement.unknown),
        "set_back": int(settlement.setback),
        "died": settlement.died,
        "due_at": settlement.due_at,
        "decision": settlement.decision,
        "detail": " ".join(filter(None, (settlement.reason, settlement.answer)))[:200].replace("\0", ""),
    }
