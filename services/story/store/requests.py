"""The one statement that requests a story: it admits it, inserts it and writes its event."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CTE, ColumnElement, DateTime, FromClause, bindparam, func, insert, literal, or_, select, true
from sqlalchemy.dialects.postgresql import insert as insert_into

from kit.data.database import Transaction
from kit.data.prepared import Prepared
from kit.events import outbox

from ..model import DAY, Demand, Limits, State, Story, Wish
from ..tables import admissions, stories
from .admissions import demand_of, demanded, person
from .stories import story_of

# What a queued story has before anybody writes it.
BEGINNING: dict[str, Any] = {
    "state": State.QUEUED,
    "title": "",
    "text": "",
    "attempt": 0,
    "failures": 0,
    "writer": "",
    "model": "",
    "prompt_tokens": 0,
    "completion_tokens": 0,
    "failure_reason": "",
}
GIVEN = (
    *("id", "owner_id", "request_id", "request_digest", "preferences", "theme", "prompt", "length", "language"),
    *("created_at", "queued_at"),
)


@dataclass(frozen=True, slots=True)
class Requested:
    """A story as it is requested. `digest` is that of the wish before preferences were filled in.

    `event` holds the `outbox.values_of` of the story's event.
    """

    story_id: UUID
    owner_id: UUID
    wish: Wish
    digest: bytes
    request_id: str | None
    event: Mapping[str, object]
    at: datetime

    def given(self) -> dict[str, Any]:
        """The values of the columns GIVEN."""
        return {
            "id": self.story_id,
            "owner_id": self.owner_id,
            "request_id": self.request_id,
            "request_digest": self.digest,
            "preferences": list(self.wish.preferences),
            "theme": self.wish.theme,
            "prompt": self.wish.prompt,
            "length": self.wish.length,
            "language": self.wish.language,
            "created_at": self.at,
            "queued_at": self.at,
        }

    def queued(self, position: int) -> Story:
        """The story as it was inserted, at this place in the queue."""
        made = {**BEGINNING, **self.given(), "queue_position": position, "started_at": None, "completed_at": None}
        return story_of(made)


def inserting(
    given: Mapping[str, ColumnElement[Any]], demand: FromClause, *fits: ColumnElement[bool]
) -> tuple[CTE, CTE]:
    """The parts of a statement that insert the stories whose demand fits, and their admissions. `given` are columns by name."""
    inserted = (
        insert_into(stories)
        .from_select(
            [*given, *BEGINNING, "dispatched_at"],
            select(
                *given.values(),
                *(literal(value, stories.c[name].type, literal_execute=True) for name, value in BEGINNING.items()),
                func.now(),
            )
            .select_from(demand)
            .where(*fits),
        )
        .on_conflict_do_nothing(index_elements=["owner_id", "request_id"])
        .returning(stories.c.id, stories.c.owner_id, stories.c.created_at)
        .cte("inserted")
    )
    admitted = (
        insert(admissions)
        .from_select(["owner_id", "admitted_at"], select(inserted.c.owner_id, inserted.c.created_at))
        .cte("admitted")
    )
    return inserted, admitted


_demand = demanded.cte("demand")
_fits = (
    ~_demand.c.erased,
    _demand.c.unfinished < bindparam("most"),
    or_(_demand.c.earliest_of_day.is_(None), _demand.c.earliest_of_day <= bindparam("day_began", type_=DateTime(True))),
    _demand.c.queued < bindparam("backlog"),
)
_inserted, _admitted = inserting({name: bindparam(name, type_=stories.c[name].type) for name in GIVEN}, _demand, *_fits)
_REQUEST = Prepared(
    select(*_demand.c, _inserted.c.id.is_not(None).label("inserted"))
    .select_from(_demand.outerjoin(_inserted, true()))
    .add_cte(_admitted, outbox.addition(_inserted))
)


async def insert_admitted(tx: Transaction, request: Requested, limits: Limits) -> tuple[Story | None, Demand]:
    """Insert a queued story with its event, and record its admission, if the demand before it allows it.

    It takes the owner's locks as `admissions.lock` does, until the transaction ends. The story is None, and nothing is written,
    when the demand does not allow it, or when the owner's request id was used before. One statement, because every request takes
    this path, and without other statements it needs neither BEGIN nor COMMIT.
    """
    given = request.given()
    admission = person(request.owner_id, limits) | {"day_began": request.at - DAY}
    (row,) = await _REQUEST.execute(tx, {**given, **admission, **request.event})
    demand = demand_of(row)
    return (request.queued(demand.queued + 1) if row["inserted"] else None), demand
