"""A prepared statement behaves as SQLAlchemy's own execution does."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import DateTime, Integer, LargeBinary, Text, Uuid, bindparam, func, insert, literal, select, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.types import TypeEngine

from kit.data.database import Database, DatabaseError
from kit.data.prepared import Prepared
from kit.errors import Unavailable
from kit.rpc.statuses import as_mesh_error
from tests.kit.conftest import effects

ADD = Prepared(insert(effects), columns=("event_id", "worker"))
EVENT = {"event_id": "0" * 32, "worker": "w"}
COUNT = Prepared(select(func.count().label("count")).select_from(effects))
PID = Prepared(select(func.pg_backend_pid().label("pid")))


async def count(db: Database) -> int:
    async with db.single() as tx:
        row = await COUNT.one_or_none(tx, {})
    assert row
    return int(row["count"])


async def test_rows_have_the_types_that_sqlalchemy_gives_them(db: Database) -> None:
    values = {
        "id": uuid4(),
        "names": ["ä", "b"],
        "at": datetime(2026, 11, 30, 12, 0, 0, 5, UTC),
        "payload": b"\x00\xff",
        "number": None,
    }
    kinds: dict[str, TypeEngine[Any]] = {
        "id": Uuid(),
        "names": ARRAY(Text),
        "at": DateTime(timezone=True),
        "payload": LargeBinary(),
        "number": Integer(),
    }
    query = select(*(bindparam(name, type_=kind).label(name) for name, kind in kinds.items()))
    async with db.transaction() as tx:
        (row,) = await Prepared(query).execute(tx, values)
        assert row == (await tx.execute(query, values)).mappings().one() == values


async def test_what_it_wrote_is_committed_or_undone_with_its_transaction(db: Database) -> None:
    async def fail() -> None:
        async with db.transaction() as tx:
            await ADD.execute(tx, EVENT)
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    assert await count(db) == 0
    async with db.transaction() as tx:
        await ADD.execute(tx, EVENT)
    assert await count(db) == 1


async def test_it_sees_what_sqlalchemy_wrote_in_the_same_transaction(db: Database) -> None:
    async with db.transaction() as tx:
        await tx.execute(insert(effects).values(**EVENT))
        assert await COUNT.one_or_none(tx, {}) == {"count": 1}
        await ADD.execute(tx, EVENT)
        assert len((await tx.execute(select(effects))).all()) == 2


async def test_a_list_of_values_is_a_part_of_the_statement(db: Database) -> None:
    query = Prepared(select(literal(1).label("one")).where(bindparam("word", type_=Text).in_(["a", "b"])))
    async with db.single() as tx:
        assert await query.one_or_none(tx, {"word": "b"}) == {"one": 1}
        assert await query.one_or_none(tx, {"word": "c"}) is None


async def test_it_takes_all_of_its_values_and_no_others(db: Database) -> None:
    async with db.single() as tx:
        with pytest.raises(TypeError, match="event_id"):
            await ADD.execute(tx, {"worker": "w"})
        with pytest.raises(TypeError, match="another"):
            await ADD.execute(tx, {**EVENT, "another": 1})


async def test_more_rows_than_one_are_a_mistake(db: Database) -> None:
    async with db.single() as tx:
        with pytest.raises(ValueError, match="2 rows"):
            await Prepared(select(func.generate_series(1, 2).label("n"))).one_or_none(tx, {})


def test_columns_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two columns"):
        Prepared(select(literal(1).label("a"), literal(2).label("a")))


def test_json_is_refused_instead_of_coming_as_text() -> None:
    for query in (select(bindparam("a", type_=JSONB).label("a")), select(literal("1").cast(JSONB).label("a"))):
        with pytest.raises(ValueError, match="JSON"):
            Prepared(query)


async def test_an_error_is_sqlalchemys_and_does_not_show_the_values(db: Database) -> None:
    async with db.single() as tx:
        with pytest.raises(IntegrityError) as raised:
            await ADD.execute(tx, {**EVENT, "worker": None})
    assert isinstance(raised.value, DatabaseError)
    assert "'event_id'" not in str(raised.value)


async def test_a_connection_that_the_server_ended_is_unavailable_and_replaced(database_url: str, db: Database) -> None:
    narrow = Database(database_url, pool=1)
    try:
        async with narrow.single() as tx:
            row = await PID.one_or_none(tx, {})
            assert row
            async with db.single() as other:
                await other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": row["pid"]})
            with pytest.raises(OperationalError) as raised:
                await PID.one_or_none(tx, {})
        assert isinstance(as_mesh_error(raised.value), Unavailable)
        async with narrow.single() as tx:
            assert await PID.one_or_none(tx, {}) != row
    finally:
        await narrow.close()


async def test_one_that_is_cancelled_leaves_nothing_and_frees_its_connection(database_url: str, db: Database) -> None:
    narrow = Database(database_url, pool=1)
    sleep = Prepared(select(func.pg_sleep(5).label("slept")))

    async def hang() -> None:
        async with narrow.transaction() as tx:
            await ADD.execute(tx, EVENT)
            await sleep.execute(tx, {})

    try:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(hang(), 0.2)
        async with asyncio.timeout(4):
            assert await count(narrow) == 0
    finally:
        await narrow.close()
