"""The one statement that requests many stories, for requests that meet.

It admits a request only when that is certain without waiting. Each other one is left to the statement of a single request, which
waits for the owner's locks and tells why there is no room.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Integer,
    Text,
    and_,
    bindparam,
    cast,
    func,
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSON

from kit.data.database import Transaction
from kit.data.given_rows import GivenRows
from kit.data.prepared import Prepared
from kit.events import outbox
from kit.events.erasure import advisory_lock_key

from ..model import DAY, Limits, Story
from ..tables import stories
from .admissions import LOCKS
from .requests import GIVEN, Requested, inserting

_PLAIN = tuple(name for name in GIVEN if name != "preferences")
_requests = GivenRows(
    "requests",
    number=Integer,
    erasure_lock=BigInteger,
    earlier=Integer,
    day_began=DateTime(timezone=True),
    # As JSON, because Postgres has no arrays of arrays.
    preferences=Text,
    **{name: stories.c[name].type for name in _PLAIN},
    **{f"event_{name}": outbox.table.c[name].type for name in outbox.COLUMNS},
)
_given = select(_requests.rows).cte("given")
_request = _given.c
_most, _a_day, _backlog = (bindparam(name, type_=Integer) for name in ("most", "a_day", "backlog"))

_demands = select(
    func.story_demands(
        *(_requests.parameter(name) for name in ("owner_id", "erasure_lock", "earlier")),
        bindparam("locks", LOCKS, Integer),
        *(_most, _a_day, _backlog),
    ).table_valued(
        Column("number", Integer),
        Column("unfinished", BigInteger),
        Column("earliest_of_day", DateTime(timezone=True)),
        Column("queued", BigInteger),
        Column("erased", Boolean),
        name="demanded",
    )
).cte("demands")
_demand = _demands.c
_fits = and_(
    ~_demand.erased,
    _demand.unfinished + _request.earlier < _most,
    _request.earlier < _a_day,
    or_(_demand.earliest_of_day.is_(None), _demand.earliest_of_day <= _request.day_began),
    _demand.queued + _request.number - 1 < _backlog,
)
_preferences = func.array(
    select(func.json_array_elements_text(cast(_request.preferences, JSON))).correlate(_given).scalar_subquery(),
    type_=ARRAY(Text),
)
_inserted, _admitted = inserting(
    {name: _preferences if name == "preferences" else _request[name] for name in GIVEN},
    _given.join(_demands, _request.number == _demand.number),
    _fits,
)
_REQUEST_ALL = Prepared(
    select(_inserted.c.id, _demand.queued)
    .join_from(_inserted, _given, _inserted.c.id == _request.id)
    .join(_demands, _request.number == _demand.number)
    .add_cte(_admitted, outbox.additions(_inserted, _given, _inserted.c.id == _request.id))
)


async def insert_all_admitted(tx: Transaction, requests: Sequence[Requested], limits: Limits) -> Sequence[Story | None]:
    """Insert those of the requests that can be admitted at once, as `requests.insert_admitted` does, and return their stories.

    None for each request that was not: its demand leaves no room, somebody holds its owner's locks, or its id was used before. It
    never waits for a lock of an owner, so batches cannot wait for each other, whatever owners they have. Of several requests of one
    owner each counts those before it, whether they were admitted or not.
    """
    earlier: Counter[object] = Counter()
    given = []
    for number, request in enumerate(requests, 1):
        given.append(
            {
                **request.given(),
                **request.event,
                "number": number,
                "erasure_lock": advisory_lock_key(request.owner_id),
                "earlier": earlier[request.owner_id],
                "day_began": request.at - DAY,
                "preferences": json.dumps(request.wish.preferences),
            }
        )
        earlier[request.owner_id] += 1
    bounds = {"most": limits.unfinished, "a_day": limits.a_day, "backlog": limits.backlog}
    queued = {row["id"]: row["queued"] for row in await _REQUEST_ALL.execute(tx, {**_requests.values(given), **bounds})}
    made: list[Story | None] = []
    for request in requests:
        before = queued.get(request.story_id)
        position = 1 + sum(story is not None for story in made)
        made.append(None if before is None else request.queued(before + position))
    return made
