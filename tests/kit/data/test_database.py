"""Transactions, and a Postgres that goes away."""

from __future__ import annotations

import asyncio
import logging

import psycopg
import psycopg.errors
import pytest
import sqlalchemy.exc
from sqlalchemy import insert, select, text

from kit.data.database import Database
from kit.data.notify import listen
from kit.errors import Unavailable
from kit.rpc.statuses import as_mesh_error
from local.harness import Servers
from tests.kit.conftest import crash, effects
from tests.waiting import until


async def count(db: Database) -> int:
    async with db.transaction() as tx:
        return len((await tx.execute(select(effects))).all())


async def add(db: Database) -> None:
    async with db.transaction() as tx:
        await tx.execute(insert(effects).values(event_id="0" * 32, worker="w"))


async def test_what_a_block_did_is_committed_at_its_end(db: Database) -> None:
    await add(db)
    assert await count(db) == 1


async def test_a_block_that_raises_leaves_nothing(db: Database) -> None:
    async def fail() -> None:
        async with db.transaction() as tx:
            await tx.execute(insert(effects).values(event_id="0" * 32, worker="w"))
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    assert await count(db) == 0


async def test_a_block_that_is_cancelled_leaves_nothing_and_frees_its_connection(
    database_url: str, db: Database
) -> None:
    narrow = Database(database_url, pool=1)

    async def hang() -> None:
        async with narrow.transaction() as tx:
            await tx.execute(insert(effects).values(event_id="0" * 32, worker="w"))
            await tx.execute(text("SELECT pg_sleep(5)"))

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(hang(), 0.2)
    assert await count(narrow) == 0
    await narrow.close()


async def test_a_killed_postgres_is_survived_on_the_next_transaction(db: Database, servers: Servers) -> None:
    await asyncio.gather(*(count(db) for _ in range(5)))
    await crash(servers)
    await asyncio.gather(*(add(db) for _ in range(5)))
    assert await count(db) == 5


async def test_while_postgres_is_away_transactions_are_unavailable(db: Database, servers: Servers) -> None:
    await servers.stop("postgres")
    try:
        with pytest.raises(sqlalchemy.exc.OperationalError) as raised:
            await db.check()
    finally:
        await servers.start("postgres")
    assert isinstance(as_mesh_error(raised.value), Unavailable)
    await db.check()


async def test_a_statement_that_hangs_is_ended(db: Database) -> None:
    async def hang() -> None:
        async with db.transaction() as tx:
            assert (await tx.execute(text("SHOW statement_timeout"))).scalar_one() == "10s"
            await tx.execute(text("SET LOCAL statement_timeout = 50"))
            await tx.execute(text("SELECT pg_sleep(5)"))

    with pytest.raises(sqlalchemy.exc.OperationalError) as raised:
        await hang()
    assert isinstance(raised.value.orig, psycopg.errors.QueryCanceled)
    assert isinstance(as_mesh_error(raised.value), Unavailable)


async def test_times_come_in_utc(db: Database) -> None:
    async with db.transaction() as tx:
        offset = (await tx.execute(text("SELECT extract(timezone FROM now())"))).scalar_one()
    assert offset == 0


async def test_an_errors_text_does_not_show_the_values_of_its_statement(db: Database) -> None:
    with pytest.raises(sqlalchemy.exc.DBAPIError) as raised:
        async with db.transaction() as tx:
            await tx.execute(insert(effects).values(number="s3cret", event_id="0" * 32, worker="s3cret"))
    record = logging.makeLogRecord({"exc_info": (type(raised.value), raised.value, None)})
    assert "parameters hidden" in logging.Formatter().format(record)
    assert "'worker': 's3cret'" not in str(raised.value)


async def test_too_many_transactions_at_once_wait_and_then_are_unavailable(database_url: str, db: Database) -> None:
    narrow = Database(database_url, pool=1, connect_seconds=1)
    async with narrow.transaction():
        with pytest.raises(sqlalchemy.exc.TimeoutError) as raised:
            await narrow.check()
    assert isinstance(as_mesh_error(raised.value), Unavailable)
    await narrow.check()
    await narrow.close()
    assert await count(db) == 0


async def test_of_those_who_listen_alone_one_is_woken_and_another_when_it_has_ended(
    db: Database, database_url: str
) -> None:
    waked = [asyncio.Event() for _ in range(3)]
    listening = [asyncio.create_task(listen(database_url, "outbox", wake, alone=True)) for wake in waked]

    async def the_woken() -> list[int]:
        for wake in waked:
            wake.clear()
        async with db.single() as tx:
            await tx.execute(text("NOTIFY outbox"))
        await until(lambda: any(wake.is_set() for wake in waked))
        return [number for number, wake in enumerate(waked) if wake.is_set()]

    try:
        # The first takes its place, which wakes it.
        await until(lambda: any(wake.is_set() for wake in waked))
        while waked:
            (number,) = await the_woken()
            listening.pop(number).cancel()
            del waked[number]
            await until(lambda: not waked or any(wake.is_set() for wake in waked))
    finally:
        for task in listening:
            task.cancel()


async def test_a_transaction_whose_owner_stands_still_gives_its_locks_back(db: Database, database_url: str) -> None:
    impatient = Database(database_url, pool=1, silent_milliseconds=200)
    lock = text("SELECT pg_advisory_xact_lock(1)")

    async def stand_still() -> None:
        async with impatient.transaction() as silent:
            await silent.execute(lock)
            async with db.transaction() as tx:
                await tx.execute(lock)
            await silent.execute(lock)

    with pytest.raises(sqlalchemy.exc.DBAPIError):
        await stand_still()
    await impatient.close()
