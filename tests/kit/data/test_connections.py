"""The pool hands out whole connections, as many as it may, whatever became of those before."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import psycopg
import pytest
import uvloop
from sqlalchemy import URL, func, insert, make_url, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, PendingRollbackError

from kit.data import connections
from kit.data.database import Database, Transaction
from kit.data.prepared import Prepared
from kit.errors import Unavailable
from kit.rpc.statuses import as_mesh_error
from tests.kit.conftest import effects
from tests.waiting import until

POOL = 3
EVENT = {"event_id": "0" * 32, "worker": "w"}
ADD = Prepared(insert(effects), columns=tuple(EVENT))
COUNT = select(func.count()).select_from(effects)
PID = text("SELECT pg_backend_pid()")
END = Prepared(select(func.pg_terminate_backend(func.pg_backend_pid()).label("ended")))


@pytest.fixture
async def own(database_url: str, db: Database) -> AsyncIterator[Database]:
    """A few connections of the test's own; `db` has others."""
    database = Database(f"{database_url}?application_name=own", pool=POOL)
    yield database
    await database.close()


async def count(db: Database) -> int:
    async with db.single() as tx:
        return int((await tx.execute(COUNT)).scalar_one())


async def end(db: Database, pid: int) -> None:
    async with db.single() as tx:
        await tx.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})


async def pid_of(db: Database) -> int:
    async with db.single() as tx:
        return int((await tx.execute(PID)).scalar_one())


class Odd(Exception):
    """Raised by a caller for reasons of its own."""


async def write_and_raise(own: Database) -> None:
    async with own.transaction() as tx:
        await ADD.execute(tx, EVENT)
        raise Odd


async def break_a_rule(own: Database) -> None:
    async with own.transaction() as tx:
        await tx.execute(insert(effects).values(EVENT))
        await ADD.execute(tx, {**EVENT, "worker": None})


async def pass_over_a_broken_rule(own: Database) -> None:
    async with own.transaction() as tx:
        with pytest.raises(IntegrityError):
            await ADD.execute(tx, {**EVENT, "worker": None})
    raise Odd


async def lose_the_connection(own: Database) -> None:
    async with own.transaction() as tx:
        await ADD.execute(tx, EVENT)
        await END.execute(tx, {})


async def lose_it_outside_of_a_transaction(own: Database) -> None:
    async with own.single() as tx:
        await END.execute(tx, {})


async def begin_by_hand(own: Database) -> None:
    async with own.single() as tx:
        await tx.execute(text("BEGIN"))
        await ADD.execute(tx, EVENT)
    raise Odd


async def leave(own: Database) -> None:
    async with asyncio.timeout(0.02), own.transaction() as tx:
        await ADD.execute(tx, EVENT)
        await tx.execute(text("SELECT pg_sleep(5)"))


async def leave_before_a_connection_is_free(own: Database) -> None:
    async with asyncio.timeout(random.uniform(0, 0.01)), own.single() as tx:
        await tx.execute(text("SELECT 1"))
    raise Odd


async def test_whatever_callers_do_there_are_never_more_connections_and_each_is_whole(
    own: Database, db: Database
) -> None:
    """None remains in a transaction, in its mode, or lost to the pool."""
    deeds = [
        *(write_and_raise, break_a_rule, pass_over_a_broken_rule, lose_the_connection),
        *(lose_it_outside_of_a_transaction, begin_by_hand, leave, leave_before_a_connection_is_free),
    ]
    busy = [deed for deed in deeds for _ in range(4)]
    random.shuffle(busy)
    ended = await asyncio.gather(*(deed(own) for deed in busy), return_exceptions=True)
    assert all(isinstance(each, (Odd, DBAPIError, TimeoutError)) for each in ended), ended
    assert await count(own) == 0

    together = asyncio.Barrier(POOL)

    async def use() -> int:
        async with own.transaction() as tx:
            await ADD.execute(tx, EVENT)
            await together.wait()
            pid = int((await tx.execute(PID)).scalar_one())
        async with own.single() as tx:
            await ADD.execute(tx, EVENT)
            await together.wait()
            # What is written is committed at once, not at the end of the block.
            assert await count(db) == 2 * POOL
            await together.wait()
        return pid

    seen = await asyncio.gather(*(use() for _ in range(POOL)))
    assert len(set(seen)) == POOL
    async with db.single() as tx:
        theirs = select(func.count()).select_from(text("pg_stat_activity")).where(text("application_name = 'own'"))
        assert (await tx.execute(theirs)).scalar_one() == POOL


async def test_a_transaction_that_raises_keeps_its_connection(own: Database) -> None:
    before = await pid_of(own)
    for deed in (write_and_raise, break_a_rule, pass_over_a_broken_rule):
        with pytest.raises((Odd, IntegrityError)):
            await deed(own)
        assert await pid_of(own) == before


@pytest.mark.parametrize("broken", ["set_autocommit", "execute"])
async def test_what_is_broken_off_before_it_begins_gives_its_connection_back(
    database_url: str, db: Database, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """While the mode is changed, and while a connection is asked that was idle."""
    monkeypatch.setattr(connections, "_IDLE_SECONDS", 0)
    narrow = Database(database_url, pool=1)

    async def break_off(*_: object) -> None:
        raise asyncio.CancelledError

    async def run() -> None:
        async with narrow.transaction() as tx:
            await tx.execute(text("SELECT 1"))

    await run()
    with monkeypatch.context() as patched:
        patched.setattr(psycopg.AsyncConnection, broken, break_off)
        with pytest.raises(asyncio.CancelledError):
            await run()
    assert await count(narrow) == 0
    await narrow.close()


async def test_what_fails_only_at_its_commit_raises_and_leaves_nothing(own: Database) -> None:
    async with own.single() as tx:
        await tx.execute(text("CREATE TEMPORARY TABLE once (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)"))

    async def run() -> None:
        async with own.transaction() as tx:
            await ADD.execute(tx, EVENT)
            await tx.execute(text("INSERT INTO once VALUES (1), (1)"))

    with pytest.raises(IntegrityError):
        await run()
    assert await count(own) == 0


async def test_a_connection_that_is_lost_before_its_commit_is_unavailable(own: Database, db: Database) -> None:
    async def run() -> None:
        async with own.transaction() as tx:
            await ADD.execute(tx, EVENT)
            await end(db, int((await tx.execute(PID)).scalar_one()))

    with pytest.raises(OperationalError) as raised:
        await run()
    assert isinstance(as_mesh_error(raised.value), Unavailable)
    assert await count(own) == 0


async def test_after_the_loss_of_its_connection_a_transaction_does_not_go_on_outside_of_itself(
    own: Database,
) -> None:
    async def write_both_ways(tx: Transaction) -> None:
        with pytest.raises((DBAPIError, PendingRollbackError)):
            await tx.execute(insert(effects).values(EVENT))
        with pytest.raises(DBAPIError):
            await ADD.execute(tx, EVENT)

    async def run() -> None:
        async with own.transaction() as tx:
            await ADD.execute(tx, EVENT)
            with pytest.raises(OperationalError):
                await END.execute(tx, {})
            await write_both_ways(tx)
            await write_both_ways(tx)

    with pytest.raises(DBAPIError):
        await run()
    assert await count(own) == 0


async def test_a_connection_that_ended_while_it_was_idle_is_not_handed_out(own: Database, db: Database) -> None:
    before = await pid_of(own)
    await end(db, before)
    assert await pid_of(own) != before


async def test_a_connection_that_ended_after_a_statement_had_failed_is_not_handed_out(
    own: Database, db: Database
) -> None:
    before = await pid_of(own)
    with pytest.raises(IntegrityError):
        async with own.single() as tx:
            await ADD.execute(tx, {**EVENT, "worker": None})
    await end(db, before)
    assert await pid_of(own) != before


async def test_a_server_that_says_something_unasked_is_not_taken_for_one_that_is_gone(
    own: Database, db: Database
) -> None:
    async with own.single() as tx:
        await tx.execute(text("LISTEN anything"))
        driver = tx.driver
    before = await pid_of(own)
    async with db.single() as tx:
        await tx.execute(text("NOTIFY anything"))
    # The loop does not turn for it until the next statement reads it.
    await until(lambda: driver.has_news)
    assert [await pid_of(own) for _ in range(3)] == [before] * 3
    assert not driver.has_news


class Resetting:
    """A way to the database whose connections are reset on demand, as those of a server that is killed."""

    def __init__(self, url: URL) -> None:
        self._url = url
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None] | None] = []

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[str]:
        async with await asyncio.start_server(self._accept, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            yield self._url.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
            self.reset()
            await asyncio.gather(*filter(None, self._tasks))

    def reset(self) -> None:
        for writer in self._writers:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        self._writers.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self._tasks.append(asyncio.current_task())
        from_database, to_database = await asyncio.open_connection(self._url.host, self._url.port)
        await asyncio.gather(self._copy(reader, to_database), self._copy(from_database, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.transport.abort()


async def lose_connections_in_use_and_idle(url: str) -> None:
    way = Resetting(make_url(url))
    async with way.opened() as to_database, asyncio.timeout(20):
        own = Database(to_database, pool=POOL)

        async def sleep() -> None:
            async with own.single() as tx:
                await tx.execute(text("SELECT pg_sleep(9)"))

        for _ in range(3):
            await pid_of(own)
            sleeping = asyncio.create_task(sleep())
            async with own.single() as tx:
                await tx.execute(text("SELECT pg_sleep(0.1)"))
            way.reset()
            with pytest.raises(OperationalError):
                await sleeping
            # Another connection was reset while it was idle: it is replaced.
            await pid_of(own)
        await own.close()


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
async def test_connections_that_a_killed_server_resets_are_noticed_on_either_event_loop(
    loop: Callable[[], asyncio.AbstractEventLoop], database_url: str, db: Database
) -> None:
    def run() -> None:
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(lose_connections_in_use_and_idle(database_url))

    await asyncio.to_thread(run)


async def test_values_larger_than_the_buffers_of_a_socket_go_both_ways(own: Database) -> None:
    large = "x" * 20_000_000
    async with own.single() as tx:
        assert (await tx.execute(select(text(":large")), {"large": large})).scalar_one() == large


async def test_the_statement_of_a_caller_that_leaves_is_ended_on_the_server(own: Database, db: Database) -> None:
    async with db.transaction() as holder:
        await holder.execute(text("LOCK TABLE effects"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1), own.single() as tx:
                await ADD.execute(tx, EVENT)
    assert await count(db) == 0
