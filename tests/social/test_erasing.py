"""Erasure of an account: nothing is left about the person, whatever happens beside it, and nothing comes back."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError
from sqlalchemy import delete, func, insert, select, text, update
from storymesh.events.v1 import auth_events_pb2
from uuid_utils.compat import uuid7

from kit.events import outbox
from kit.events.dead_letter_store import dead_letters
from kit.events.erasure import erased_subjects
from services.social.model.handles import HandleDigests
from services.social.operations.erasing import Erasing
from services.social.tables import blocks, mutes, profiles
from tests.social.conftest import Person, SocialWorld, ids
from tests.statuses import raises_status, reason_of
from tests.waiting import until

REVOKED = (StatusCode.UNAUTHENTICATED, "SESSION_REVOKED")
NOBODY = (StatusCode.NOT_FOUND, "USER_NOT_FOUND")


async def named_in(world: SocialWorld, user_id: UUID, *words: str) -> set[str]:
    """Tables with a row that names the person, by id or by a word."""
    found = set()
    async with world.db.single() as tx:
        tables = list(await tx.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")))
        for table in tables:
            rows = await tx.scalars(text(f"SELECT t::text FROM {table} t"))
            needles = (str(user_id), user_id.hex, str(user_id).encode().hex(), *words)
            if any(needle in row for row in rows for needle in needles):
                found.add(table)
    return found


async def deleted(world: SocialWorld, person: Person) -> None:
    await world.deliver(auth_events_pb2.UserDeleted(user_id=str(person.id)), "social-accounts", person.id)


async def published(world: SocialWorld) -> None:
    async with world.db.transaction() as tx:
        await tx.execute(update(outbox.table).values(published_at=func.now()))


async def lived(world: SocialWorld) -> tuple[Person, Person]:
    """A person about whom there is a row of every kind, and another one."""
    person, other = world.person(), await world.member()
    await person.change(handle="ada_lovelace", display_name="Ada Lovelace", bio="Countess")
    await person.change(handle="ada_of_lovelace")
    await person.mute(other)
    await other.mute(person)
    third = await world.member()
    await person.block(third)
    await person.unblock(third)
    await third.block(person)
    await person.block(other)
    async with world.db.transaction() as tx:
        letter = {"event_id": uuid7(), "type": "t", "key": "k", "reason": "", "failures": 8}
        await tx.execute(insert(dead_letters).values(**letter, event=str(person.id).encode()))
        await tx.execute(insert(dead_letters).values(**{**letter, "event_id": uuid7()}, event=b"another's"))
    await published(world)
    return person, other


async def test_nothing_is_left_of_a_deleted_account_but_the_tombstone(world: SocialWorld) -> None:
    person, other = await lived(world)
    words = ("ada_lovelace", "ada_of_lovelace", "Countess")
    assert await named_in(world, person.id, *words) >= {"profiles", "former_handles", "handle_changes", "blocks", "mutes",
                                                        "outbox", "dead_letters"}  # fmt: skip
    async with world.working():
        for _ in range(2):
            await deleted(world, person)
        await until(lambda: _is_gone(world, person, words))
    assert (await other.muted()).profiles == []
    async with world.db.single() as tx:
        assert await tx.scalar(select(func.count()).select_from(dead_letters)) == 1


async def _is_gone(world: SocialWorld, person: Person, words: tuple[str, ...]) -> bool:
    return await named_in(world, person.id, *words) == {erased_subjects.name}


@pytest.mark.parametrize("first", ["registered", "deleted"])
async def test_events_of_a_deleted_account_make_nothing_in_any_order(world: SocialWorld, first: str) -> None:
    person, viewer = world.person(), await world.member()
    registered = auth_events_pb2.UserRegistered(user_id=str(person.id))
    if first == "deleted":
        await world.work().erasing.erase(person.id)
    async with world.working():
        if first == "registered":
            await world.deliver(registered, "social", person.id)
            await until(lambda: viewer.look_at_all(person))
            await deleted(world, person)
            await until(lambda: _is_gone(world, person, ()))
        await world.deliver(registered, "social", person.id)
        later = world.person()
        await world.deliver(auth_events_pb2.UserRegistered(user_id=str(later.id)), "social", later.id)
        await until(lambda: viewer.look_at_all(later))
    assert await named_in(world, person.id) == {erased_subjects.name}
    with raises_status(*NOBODY):
        await viewer.look_at(person)


async def test_a_token_of_a_deleted_account_changes_nothing(world: SocialWorld) -> None:
    person, other = await world.member(), await world.member()
    await world.work().erasing.erase(person.id)
    for call in (
        person.own(),
        person.look_at(person),
        person.change(handle="ada_l"),
        person.delete(),
        person.block(other),
        person.unmute(other),
    ):
        with raises_status(*REVOKED):
            await call
    with raises_status(*NOBODY):
        await other.block(person)
    assert await named_in(world, person.id) == {erased_subjects.name}


async def test_what_happens_while_an_account_is_erased_leaves_nothing(world: SocialWorld) -> None:
    person, *others = [await world.member() for _ in range(5)]

    async def outcome(call: Any) -> str:
        try:
            await call
        except AioRpcError as error:
            return reason_of(error)
        return ""

    async def lives() -> set[str]:
        outcomes = set()
        while REVOKED[1] not in outcomes:
            for other in others:
                for call in (other.block(person), person.mute(other), other.unblock(person), person.change(bio="x")):
                    outcomes.add(await outcome(call))
        return outcomes

    living = [asyncio.create_task(lives()) for _ in range(3)]
    await until(world.events)
    erasing = Erasing(world.db, HandleDigests(world.handle_key), world.resources.clock, batch=1)
    await erasing.erase(person.id)
    outcomes = set().union(*await asyncio.gather(*living))
    assert outcomes <= {"", "USER_NOT_FOUND", "SESSION_REVOKED"}
    await published(world)
    await erasing.erase(person.id)
    assert await named_in(world, person.id) == {erased_subjects.name}


async def test_an_erasure_goes_on_where_it_was_broken_off(world: SocialWorld) -> None:
    person, others = await world.member(), [await world.member() for _ in range(5)]
    for each in others:
        await person.block(each)
        await person.mute(each)

    class Cut(Exception):
        pass

    class CutDatabase:
        """Breaks off before the transaction with this number."""

        def __init__(self, at: int) -> None:
            self.left = at

        def transaction(self) -> Any:
            self.left -= 1
            if self.left < 0:
                raise Cut
            return world.db.transaction()

    async def cut(erase: str) -> None:
        for at in range(30):
            db: Any = CutDatabase(at)
            erasing = Erasing(db, HandleDigests(world.handle_key), world.resources.clock, batch=2)
            try:
                await getattr(erasing, erase)(person.id)
            except Cut:
                continue
            return
        raise AssertionError("it never came to its end")

    await person.delete()
    await cut("erase_profile")
    with raises_status(StatusCode.NOT_FOUND, "PROFILE_DELETED"):
        await person.own()
    async with world.db.single() as tx:
        for table in (blocks, mutes):
            assert await tx.scalar(select(func.count()).select_from(table)) == 0
    names = [name for name, _ in await world.events()]
    assert (names.count("UserBlocked"), names.count("UserUnblocked")) == (5, 5)

    await person.change(bio="anew")
    for each in others:
        await person.block(each)
    await published(world)
    await cut("erase")
    assert await named_in(world, person.id) == {erased_subjects.name}
    async with world.db.single() as tx:
        assert await tx.scalar(select(func.count()).select_from(profiles)) == len(others)


async def test_an_erasure_of_many_rows_holds_no_lock_that_others_wait_for(world: SocialWorld) -> None:
    person, other = await world.member(), await world.member()
    async with world.db.transaction() as tx:
        rows = [
            {"user_id": uuid7(), "subject_id": person.id, "id": uuid7(), "created_at": world.resources.clock()}
            for _ in range(2000)
        ]
        await tx.execute(insert(blocks), rows)
    erasing = asyncio.create_task(world.work().erasing.erase(person.id))
    for _ in range(10):
        await other.change(bio=str(uuid7()))
        third = await world.member()
        await other.block(third)
        assert str(third.id) in ids((await other.blocked()).profiles)
    await erasing
    assert await named_in(world, person.id) == {erased_subjects.name}


async def test_two_who_mute_each_other_are_erased_at_once_without_waiting_in_a_circle(world: SocialWorld) -> None:
    person, other = await world.member(), await world.member()
    await person.mute(other)
    await other.mute(person)

    async def waits() -> bool:
        async with world.db.single() as tx:
            query = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            return bool(await tx.scalar(text(query)))

    async with asyncio.TaskGroup() as group, world.db.transaction() as tx:
        # The other's erasure has begun with what the other did; then comes what was done to the other.
        await tx.execute(delete(mutes).where(mutes.c.user_id == other.id))
        group.create_task(world.work().erasing.erase(person.id))
        await until(waits)
        await tx.execute(select(mutes.c.id).where(mutes.c.subject_id == other.id).with_for_update(nowait=True))
    assert await named_in(world, person.id) == {erased_subjects.name}
