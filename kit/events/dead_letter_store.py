"""Every statement about the tables dead_letters and dead_letter_decisions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    Uuid,
    func,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine.row import RowMapping

from kit.data.database import Transaction

from . import outbox
from .dead_letter_model import DeadLetter, DeadLetterDecision, Settlement

dead_letters = Table(
    "dead_letters",
    outbox.metadata,
    Column("event_id", Uuid, primary_key=True),
    Column("type", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("event", LargeBinary, nullable=False),
    Column("reason", Text, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("died_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    # Where it died, and so where it goes back to. NULL: in the inbox that bears the service's name.
    Column("inbox", Text),
    Column("settled_at", DateTime(timezone=True)),
    Column("settlement", Text),
    Column("settled_by", Uuid),
    Column("settled_because", Text),
    # When a replayed one went back into its inbox.
    Column("returned_at", DateTime(timezone=True)),
    Index("dead_letters_unsettled", "died_at", "event_id", postgresql_where=text("settled_at IS NULL")),
    Index(
        "dead_letters_to_return",
        "settled_at",
        postgresql_where=text("settlement = 'REPLAYED' AND returned_at IS NULL"),
    ),
)

dead_letter_decisions = Table(
    "dead_letter_decisions",
    outbox.metadata,
    Column("position", BigInteger, Identity(always=True), primary_key=True),
    # Erasing the letter erases what was decided about it; nothing else removes either.
    Column("event_id", Uuid, ForeignKey(dead_letters.c.event_id, ondelete="CASCADE"), nullable=False),
    Column("inbox", Text, nullable=False),
    Column("decision", Text, nullable=False),
    Column("actor", Uuid, nullable=False),
    Column("because", Text, nullable=False),
    Column("decided_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Index("dead_letter_decisions_by_event", "event_id", "position"),
)
"""Append-only: the letter's own row holds the latest decision, and none once it died again."""

_DECISIONS_SHOWN = 10
"""Decisions read with each letter: one that is replayed for ever must not make a page too long to be sent."""

Position = tuple[datetime, UUID]
"""Place of a letter in the list: when it died, and its event's id."""


async def record(
    tx: Transaction, *, event_id: UUID, inbox: str, type_: str, key: str, event: bytes, reason: str, failures: int
) -> None:
    """Keep the event as a dead letter.

    Changes nothing for one that is unsettled or was discarded. One that was replayed becomes unsettled again.
    """
    statement = insert(dead_letters).values(
        event_id=event_id, inbox=inbox, type=type_, key=key, event=event, reason=reason, failures=failures
    )
    table, fresh = dead_letters, statement.excluded
    again = {name: fresh[name] for name in ("inbox", "type", "key", "event", "reason", "failures")}
    unsettled = dict.fromkeys(("settled_at", "settlement", "settled_by", "settled_because", "returned_at"))
    await tx.execute(
        statement.on_conflict_do_update(
            index_elements=["event_id"],
            set_={**again, **unsettled, "died_at": func.now()},
            # One that is still on its way back was decided about: a copy from before the decision does not undo it.
            where=(table.c.settlement == Settlement.REPLAYED) & table.c.returned_at.is_not(None),
        )
    )


async def put_aside_among(tx: Transaction, event_ids: Collection[UUID]) -> set[UUID]:
    """Those of the events that are unsettled or were discarded: a copy of such an event must not be handled."""
    table = dead_letters
    kept = or_(table.c.settled_at.is_(None), table.c.settlement == Settlement.DISCARDED)
    query = select(table.c.event_id).where(table.c.event_id.in_(event_ids), kept)
    return set((await tx.execute(query)).scalars())


async def page(tx: Transaction, service: str, limit: int, *, after: Position | None) -> Sequence[DeadLetter]:
    """At most `limit` unsettled dead letters of this database, newest first, from behind the position on."""
    table = dead_letters
    query = select(table).where(table.c.settled_at.is_(None))
    if after:
        query = query.where(tuple_(table.c.died_at, table.c.event_id) < tuple_(*after))
    query = query.order_by(table.c.died_at.desc(), table.c.event_id.desc()).limit(limit)
    return await _letters(tx, service, (await tx.execute(query)).mappings().all())


async def lock(tx: Transaction, service: str, event_ids: Sequence[UUID]) -> tuple[set[UUID], Sequence[DeadLetter]]:
    """Lock those of the dead letters that exist. Returns their ids, and the unsettled ones among them."""
    table = dead_letters
    # In one order, so that two decisions about the same letters do not wait for each other.
    query = select(table).where(table.c.event_id.in_(event_ids)).order_by(table.c.event_id).with_for_update()
    rows = (await tx.execute(query)).mappings().all()
    unsettled = [row for row in rows if row["settled_at"] is None]
    return {row["event_id"] for row in rows}, await _letters(tx, service, unsettled)


async def settle(
    tx: Transaction, service: str, event_ids: Sequence[UUID], settlement: Settlement, *, actor: UUID, reason: str
) -> None:
    """Settle locked, unsettled dead letters, and add the decision to each one's record."""
    table = dead_letters
    settled = (
        update(table)
        .where(table.c.event_id.in_(event_ids))
        .values(
            settlement=settlement,
            settled_at=func.now(),
            settled_by=actor,
            settled_because=reason,
            inbox=func.coalesce(table.c.inbox, service),
            returned_at=None,
        )
        .returning(table.c.event_id, table.c.inbox)
    )
    decided = [
        {"event_id": event_id, "inbox": inbox, "decision": settlement, "actor": actor, "because": reason}
        for event_id, inbox in await tx.execute(settled)
    ]
    await tx.execute(insert(dead_letter_decisions), decided)


async def lock_to_return(tx: Transaction, inbox: str, limit: int) -> Sequence[RowMapping]:
    """Lock replayed dead letters that have yet to go back into the inbox; rows of event_id and event."""
    table = dead_letters
    query = (
        select(table.c.event_id, table.c.event)
        .where(table.c.settlement == Settlement.REPLAYED, table.c.returned_at.is_(None), table.c.inbox == inbox)
        .order_by(table.c.settled_at, table.c.died_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return (await tx.execute(query)).mappings().all()


async def mark_returned(tx: Transaction, event_ids: Sequence[UUID]) -> None:
    await tx.execute(update(dead_letters).where(dead_letters.c.event_id.in_(event_ids)).values(returned_at=func.now()))


async def return_again(tx: Transaction, inbox: str, since: datetime | None) -> None:
    """Have what went back into the inbox since then go back once more: Redis may have lost it. None: since ever."""
    table = dead_letters
    went_back = [
        table.c.settlement == Settlement.REPLAYED,
        table.c.inbox == inbox,
        table.c.returned_at > func.now() - outbox.KEPT,
    ]
    if since:
        went_back.append(table.c.returned_at >= since)
    await tx.execute(update(table).where(*went_back).values(returned_at=None))


async def forget_settled(tx: Transaction) -> None:
    """Remove content and key of what was settled longer than `outbox.KEPT` ago: the decision stays on record."""
    table = dead_letters
    past = table.c.settled_at < func.now() - outbox.KEPT
    gone = or_(table.c.settlement == Settlement.DISCARDED, table.c.returned_at < func.now() - outbox.KEPT)
    await tx.execute(update(table).where(past, gone, table.c.event != b"").values(event=b"", key=""))


async def _letters(tx: Transaction, service: str, rows: Sequence[RowMapping]) -> Sequence[DeadLetter]:
    decisions = await _decisions_about(tx, [row["event_id"] for row in rows])
    return [
        DeadLetter(
            event_id=row["event_id"],
            service=service,
            type=row["type"],
            key=row["key"],
            reason=row["reason"],
            failures=row["failures"],
            died_at=row["died_at"],
            decisions=tuple(decisions.get(row["event_id"], ())),
        )
        for row in rows
    ]


async def _decisions_about(tx: Transaction, event_ids: Sequence[UUID]) -> Mapping[UUID, Sequence[DeadLetterDecision]]:
    """The latest decisions about each event, oldest first."""
    if not event_ids:
        return {}
    table = dead_letter_decisions
    age = func.row_number().over(partition_by=table.c.event_id, order_by=table.c.position.desc()).label("age")
    numbered = select(table, age).where(table.c.event_id.in_(event_ids)).subquery()
    query = select(numbered).where(numbered.c.age <= _DECISIONS_SHOWN).order_by(numbered.c.position)
    decisions: dict[UUID, list[DeadLetterDecision]] = {}
    for row in (await tx.execute(query)).mappings():
        decision = DeadLetterDecision(Settlement(row["decision"]), row["actor"], row["because"], row["decided_at"])
        decisions.setdefault(row["event_id"], []).append(decision)
    return decisions
