"""Events that a service could not handle: kept in its own database until an administrator decides about them.

A decision is one transaction. What is replayed goes back into its inbox afterwards, by `inbox_upkeep`, which repeats that until it
is recorded: the event may come back twice, under its own id, and never not at all. One that dies again waits for a decision again.
Every decision is kept for as long as its letter, which only an erasure removes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol
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

from kit.data.database import Database, Transaction
from kit.data.paging import DEFAULT_SIZE
from kit.errors import InvalidArgument, NotFound, Violation
from kit.identity.signing import Signer

from . import outbox

log = logging.getLogger(__name__)


class Settlement(StrEnum):
    REPLAYED = "REPLAYED"
    DISCARDED = "DISCARDED"


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
    # Whoever erases the letter erases what was decided about it; nothing else removes either.
    Column("event_id", Uuid, ForeignKey(dead_letters.c.event_id, ondelete="CASCADE"), nullable=False),
    Column("inbox", Text, nullable=False),
    Column("decision", Text, nullable=False),
    Column("actor", Uuid, nullable=False),
    Column("because", Text, nullable=False),
    Column("decided_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Index("dead_letter_decisions_by_event", "event_id", "position"),
)
"""Only ever added to: the letter's own row holds the latest decision, and none any more when it died again."""

_DECISIONS_SHOWN = 10
"""Of each letter: one that is replayed for ever must not make a page of letters too long to be sent."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What an administrator did about a letter, and why."""

    settlement: Settlement
    actor: UUID
    because: str
    decided_at: datetime


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One that waits for a decision. Never with the event's content, which may be personal."""

    event_id: UUID
    service: str
    type: str
    key: str
    reason: str
    failures: int
    died_at: datetime
    decisions: tuple[Decision, ...] = ()
    """Those that were made before it died again: the last ones, oldest first."""


@dataclass(frozen=True, slots=True)
class Letters:
    """A page, newest first."""

    letters: tuple[DeadLetter, ...]
    next_token: str
    """Empty on the last page."""


@dataclass(frozen=True, slots=True)
class Administrator:
    """Who decides, and the token that proves it to another service."""

    user_id: UUID
    access_token: str = field(repr=False)


class DeadLetterNotFound(NotFound):
    reason = "DEAD_LETTER_NOT_FOUND"
    message = "there is no such dead letter"


class Keeper(Protocol):
    """Keeps the dead letters of one service, here or elsewhere."""

    async def list(self, administrator: Administrator, page_size: int, page_token: str) -> Letters:
        """Those that are not settled, newest first. Raises InvalidArgument for a page token of another list."""
        ...

    async def settle(
        self,
        administrator: Administrator,
        settlement: Settlement,
        event_ids: Sequence[UUID],
        *,
        because: str,
        dry_run: bool,
    ) -> Sequence[DeadLetter]:
        """All or none, and answers those that were not settled before. Raises DeadLetterNotFound."""
        ...


class DeadLetters:
    """A service's own."""

    def __init__(self, db: Database, service: str, signer: Signer) -> None:
        self._db = db
        self._service = service
        self._signer = signer
        self._query = f"page:deadLetters:{service}"

    async def list(self, _administrator: Administrator, page_size: int, page_token: str) -> Letters:
        size = page_size or DEFAULT_SIZE
        table = dead_letters
        query = select(table).where(table.c.settled_at.is_(None))
        if page_token:
            query = query.where(tuple_(table.c.died_at, table.c.event_id) < self._position(page_token))
        query = query.order_by(table.c.died_at.desc(), table.c.event_id.desc()).limit(size + 1)
        async with self._db.transaction() as tx:
            rows = (await tx.execute(query)).mappings().all()
            letters = await self._letters(tx, rows[:size])
        if len(rows) <= size:
            return Letters(letters, "")
        return Letters(
            letters, self._signer.sign(self._query, f"{letters[-1].died_at.isoformat()} {letters[-1].event_id}")
        )

    async def settle(
        self,
        administrator: Administrator,
        settlement: Settlement,
        event_ids: Sequence[UUID],
        *,
        because: str,
        dry_run: bool,
    ) -> Sequence[DeadLetter]:
        table = dead_letters
        # In one order, so that two decisions about the same letters do not wait for each other.
        query = select(table).where(table.c.event_id.in_(event_ids)).order_by(table.c.event_id).with_for_update()
        async with self._db.transaction() as tx:
            rows = (await tx.execute(query)).mappings().all()
            missing = set(event_ids) - {row["event_id"] for row in rows}
            if missing:
                raise DeadLetterNotFound(event_id=min(missing))
            open_ = [row for row in rows if row["settled_at"] is None]
            letters = await self._letters(tx, open_)
            if open_ and not dry_run:
                await tx.execute(
                    update(table)
                    .where(table.c.event_id.in_([row["event_id"] for row in open_]))
                    .values(
                        settlement=settlement,
                        settled_at=func.now(),
                        settled_by=administrator.user_id,
                        settled_because=because,
                        inbox=func.coalesce(table.c.inbox, self._service),
                        returned_at=None,
                    )
                )
                await tx.execute(
                    insert(dead_letter_decisions),
                    [
                        {
                            "event_id": row["event_id"],
                            "inbox": row["inbox"] or self._service,
                            "decision": settlement,
                            "actor": administrator.user_id,
                            "because": because,
                        }
                        for row in open_
                    ],
                )
        if open_ and not dry_run:
            log.warning(
                'dead letters %s because "%s": %s',
                settlement.lower(),
                because,
                ", ".join(f"{row['type']} {row['event_id']}" for row in open_),
                extra={"user.id": str(administrator.user_id)},
            )
        return letters

    def _position(self, page_token: str) -> Any:
        position = self._signer.open(self._query, page_token)
        if position is None:
            raise foreign_page_token()
        died_at, _, event_id = position.partition(" ")
        return tuple_(datetime.fromisoformat(died_at), UUID(event_id))

    async def _letters(self, tx: Transaction, rows: Sequence[RowMapping]) -> tuple[DeadLetter, ...]:
        decisions = await _decisions_about(tx, [row["event_id"] for row in rows])
        return tuple(self._letter(row, decisions.get(row["event_id"], ())) for row in rows)

    def _letter(self, row: RowMapping, decisions: Sequence[Decision]) -> DeadLetter:
        return DeadLetter(
            event_id=row["event_id"],
            service=self._service,
            type=row["type"],
            key=row["key"],
            reason=row["reason"],
            failures=row["failures"],
            died_at=row["died_at"],
            decisions=tuple(decisions),
        )


async def _decisions_about(tx: Transaction, event_ids: Sequence[UUID]) -> Mapping[UUID, Sequence[Decision]]:
    """The last ones about each event, oldest first."""
    if not event_ids:
        return {}
    table = dead_letter_decisions
    age = func.row_number().over(partition_by=table.c.event_id, order_by=table.c.position.desc()).label("age")
    numbered = select(table, age).where(table.c.event_id.in_(event_ids)).subquery()
    query = select(numbered).where(numbered.c.age <= _DECISIONS_SHOWN).order_by(numbered.c.position)
    decisions: dict[UUID, list[Decision]] = {}
    for row in (await tx.execute(query)).mappings():
        decision = Decision(Settlement(row["decision"]), row["actor"], row["because"], row["decided_at"])
        decisions.setdefault(row["event_id"], []).append(decision)
    return decisions


def foreign_page_token() -> InvalidArgument:
    return InvalidArgument([Violation("page_token", "is not a token that this list handed out", "PAGE_TOKEN_INVALID")])


async def bury(
    tx: Transaction, *, event_id: UUID, inbox: str, type_: str, key: str, event: bytes, reason: str, failures: int
) -> None:
    """Keeps the event as a dead letter.

    Nothing changes for one that waits for a decision already, or was discarded. One that was replayed waits again.
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


async def is_put_aside(tx: Transaction, event_id: UUID) -> bool:
    """Whether the event waits for a decision, or was given up: a copy of it that comes by must not be handled."""
    table = dead_letters
    kept = or_(table.c.settled_at.is_(None), table.c.settlement == Settlement.DISCARDED)
    query = select(table.c.event_id).where(table.c.event_id == event_id, kept)
    return (await tx.execute(query)).scalar_one_or_none() is not None


async def lock_to_return(tx: Transaction, inbox: str, limit: int) -> Sequence[RowMapping]:
    """Replayed ones that have yet to go back into the inbox: id and event."""
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
    """Redis may have lost what went back since then."""
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
    """Removes content and key of what was settled long ago: the decision stays on record."""
    table = dead_letters
    past = table.c.settled_at < func.now() - outbox.KEPT
    gone = or_(table.c.settlement == Settlement.DISCARDED, table.c.returned_at < func.now() - outbox.KEPT)
    await tx.execute(update(table).where(past, gone, table.c.event != b"").values(event=b"", key=""))
