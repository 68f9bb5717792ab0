"""Shared reads: one statement for calls that meet, none of which waits, fails or ends because of another."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from sqlalchemy import Integer, any_, bindparam, insert, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.exc import DataError

from kit.data.database import Database, Transaction
from kit.data.prepared import Prepared
from kit.data.shared_reads import SharedRead
from local.harness import Servers
from tests.kit.conftest import crash, effects
from tests.waiting import until

_READ = Prepared(
    select(effects.c.number, effects.c.worker).where(
        effects.c.number == any_(bindparam("numbers", type_=ARRAY(Integer)))
    )
)
_TOO_LARGE = 2**40


class Reads:
    """Reads effects by their numbers; a statement that has begun goes on when the test lets it."""

    def __init__(self) -> None:
        self.statements: list[list[int]] = []
        self.gate = asyncio.Event()

    async def __call__(self, tx: Transaction, numbers: Sequence[int]) -> dict[int, str]:
        self.statements.append(list(numbers))
        await self.gate.wait()
        return {row["number"]: row["worker"] for row in await _READ.execute(tx, {"numbers": numbers})}


@pytest.fixture
def reads() -> Reads:
    return Reads()


@pytest.fixture
async def written(db: Database) -> None:
    async with db.transaction() as tx:
        for number in range(1, 9):
            await tx.execute(insert(effects).values(number=number, event_id="0" * 32, worker=f"worker {number}"))


pytestmark = pytest.mark.usefixtures("written")


async def turn() -> None:
    """Lets all that is ready go on, as far as it comes without the database."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_calls_of_one_moment_share_a_statement_and_those_that_come_meanwhile_share_the_next(
    db: Database, reads: Reads
) -> None:
    shared = SharedRead(db, reads, patience_seconds=60)
    first = [asyncio.create_task(shared.find(number)) for number in (1, 2)]
    await until(lambda: reads.statements)
    later = [asyncio.create_task(shared.find(number)) for number in (3, 1, 3, 99)]
    await turn()
    assert reads.statements == [[1, 2]]
    reads.gate.set()
    assert await asyncio.gather(*first) == ["worker 1", "worker 2"]
    assert await asyncio.gather(*later) == ["worker 3", "worker 1", "worker 3", None]
    assert await shared.find(4) == "worker 4"
    assert reads.statements == [[1, 2], [3, 1, 99], [4]]


async def test_what_was_committed_before_a_call_is_seen_by_it_although_a_statement_is_on_its_way(
    db: Database, reads: Reads
) -> None:
    shared = SharedRead(db, reads, patience_seconds=60)
    first = asyncio.create_task(shared.find(1))
    await until(lambda: reads.statements)
    async with db.transaction() as tx:
        await tx.execute(insert(effects).values(number=50, event_id="0" * 32, worker="new"))
    later = asyncio.create_task(shared.find(50))
    await turn()
    reads.gate.set()
    assert (await first, await later) == ("worker 1", "new")


async def test_a_statement_has_no_more_keys_than_it_may(db: Database, reads: Reads) -> None:
    reads.gate.set()
    shared = SharedRead(db, reads, most=3)
    found = await asyncio.gather(*(shared.find(number) for number in range(1, 9)))
    assert found == [f"worker {number}" for number in range(1, 9)]
    assert reads.statements == [[1, 2, 3], [4, 5, 6], [7, 8]]


async def test_a_slow_statement_delays_only_its_own_calls(db: Database, reads: Reads) -> None:
    shared = SharedRead(db, reads)
    slow = asyncio.create_task(shared.find(1))
    await until(lambda: reads.statements)
    reads.gate, gate = asyncio.Event(), reads.gate
    reads.gate.set()
    assert await shared.find(2) == "worker 2"
    assert not slow.done()
    gate.set()
    assert await slow == "worker 1"


async def test_a_call_that_ends_leaves_at_once_and_takes_nobody_along(db: Database, reads: Reads) -> None:
    shared = SharedRead(db, reads, patience_seconds=60)
    asked = [asyncio.create_task(shared.find(number)) for number in (1, 1, 2)]
    await until(lambda: reads.statements)
    waiting = [asyncio.create_task(shared.find(number)) for number in (3, 4)]
    await turn()
    for gone in (asked[0], waiting[0]):
        gone.cancel()
    assert await asyncio.wait_for(asyncio.gather(asked[0], waiting[0], return_exceptions=True), 5)
    assert asked[0].cancelled()
    assert waiting[0].cancelled()
    reads.gate.set()
    assert await asyncio.gather(*asked[1:], waiting[1]) == ["worker 1", "worker 2", "worker 4"]
    assert reads.statements == [[1, 2], [4]]


async def test_a_key_that_fails_fails_alone(db: Database, reads: Reads) -> None:
    reads.gate.set()
    shared = SharedRead(db, reads)
    found = await asyncio.gather(*map(shared.find, (1, _TOO_LARGE, 2)), return_exceptions=True)
    assert isinstance(found[1], DataError)
    assert [found[0], found[2]] == ["worker 1", "worker 2"]
    assert await shared.find(3) == "worker 3"


async def test_a_database_that_is_gone_fails_the_calls_that_met_and_serves_the_next(
    db: Database, reads: Reads, servers: Servers
) -> None:
    shared = SharedRead(db, reads, patience_seconds=60)
    asked = [asyncio.create_task(shared.find(number)) for number in (1, 2)]
    await until(lambda: reads.statements)
    await crash(servers)
    reads.gate.set()
    for error in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(error, Exception)
    assert reads.statements == [[1, 2]]
    assert await shared.find(3) == "worker 3"
