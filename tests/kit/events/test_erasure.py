"""Erasures against writers, on real connections: whatever the order, nothing about an erased person survives."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from uuid import UUID, uuid4

from sqlalchemy import delete, func, insert, select, text

from kit.data.database import Database
from kit.events import erasure
from tests.kit.conftest import effects
from tests.waiting import until


async def write(db: Database, subject: UUID) -> bool:
    """One guarded write about the person."""
    async with db.transaction() as tx:
        if await erasure.is_erased(tx, subject):
            return False
        await tx.execute(insert(effects).values(event_id=subject, worker="w"))
    return True


async def erase(db: Database, subject: UUID) -> None:
    async with db.transaction() as tx:
        await erasure.erase(tx, subject)
    async with db.transaction() as tx:
        await tx.execute(delete(effects).where(effects.c.event_id == subject))


async def written(db: Database) -> int:
    async with db.transaction() as tx:
        return int(await tx.scalar(select(func.count()).select_from(effects)) or 0)


async def waiting(db: Database) -> int:
    """How many connections wait for a person's lock."""
    async with db.transaction() as tx:
        query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        return int(await tx.scalar(text(query)) or 0)


async def test_whoever_began_to_write_before_the_erasure_is_waited_for(db: Database) -> None:
    subject = uuid4()
    async with db.transaction() as early:
        assert not await erasure.is_erased(early, subject)
        erasing = asyncio.create_task(erase(db, subject))
        await until(lambda: waiting(db))
        await early.execute(insert(effects).values(event_id=subject, worker="early"))
    await erasing
    assert await written(db) == 0


async def test_whoever_begins_to_write_during_the_erasure_is_told_of_it(db: Database) -> None:
    subject = uuid4()
    async with db.transaction() as erasing:
        await erasure.erase(erasing, subject)
        writing = asyncio.create_task(write(db, subject))
        await until(lambda: waiting(db))
    assert not await writing
    assert await written(db) == 0


async def test_an_erasure_that_is_rolled_back_erases_nobody(db: Database) -> None:
    subject = uuid4()
    with suppress(ZeroDivisionError):
        async with db.transaction() as tx:
            await erasure.erase(tx, subject)
            raise ZeroDivisionError
    assert await write(db, subject)


async def test_writers_of_one_person_do_not_wait_for_each_other_nor_for_the_erasure_of_another(db: Database) -> None:
    subject = uuid4()
    async with db.transaction() as first, db.transaction() as other:
        assert not await erasure.is_erased(first, subject)
        await erasure.erase(other, uuid4())
        assert await write(db, subject)


async def test_an_erasure_may_be_repeated(db: Database) -> None:
    subject = uuid4()
    await asyncio.gather(*(erase(db, subject) for _ in range(8)))
    assert not await write(db, subject)


async def test_no_write_that_races_an_erasure_survives_it(db: Database) -> None:
    """Eight writers for each of eight people, who are erased in the middle of it."""
    subjects = [uuid4() for _ in range(8)]
    accepted = 0

    async def keep_writing(subject: UUID) -> None:
        nonlocal accepted
        while await write(db, subject):
            accepted += 1

    async def erase_soon(subject: UUID) -> None:
        before = accepted
        await until(lambda: accepted >= before + 20)
        await erase(db, subject)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for subject in subjects:
            for _ in range(8):
                group.create_task(keep_writing(subject))
            group.create_task(erase_soon(subject))
    assert accepted >= 20
    assert await written(db) == 0
