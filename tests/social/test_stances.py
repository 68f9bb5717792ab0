"""Blocks and mutes: taken and taken back once, listed, and told of."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf.message import Message
from grpc import StatusCode
from grpc.aio import AioRpcError
from sqlalchemy import delete, insert
from storymesh.events.v1 import social_events_pb2 as events
from uuid_utils.compat import uuid7

from services.social.tables import blocks
from tests.social.conftest import Person, SocialWorld, ids
from tests.statuses import raises_status, reason_of, violated_fields

NOBODY = (StatusCode.NOT_FOUND, "USER_NOT_FOUND")


async def told(world: SocialWorld) -> list[Message]:
    return [getattr(events, name).FromString(payload) for name, payload in await world.events()]


async def test_a_block_repeated_or_taken_back_repeatedly_has_one_effect_and_is_told_of_once(world: SocialWorld) -> None:
    person, other = await world.member(), await world.member()
    both = {"blocker_id": str(person.id), "blocked_id": str(other.id)}
    assert not (await person.unblock(other)).blocking
    taken = await asyncio.gather(*(person.block(other) for _ in range(16)))
    assert all(each.blocking for each in taken)
    assert ids((await person.blocked()).profiles) == [str(other.id)]
    left = await asyncio.gather(*(person.unblock(other) for _ in range(16)))
    assert not any(each.blocking for each in left)
    assert (await person.blocked()).profiles == []
    assert await told(world) == [events.UserBlocked(**both), events.UserUnblocked(**both)]
    assert (await other.look_at(person)).user_id == str(person.id)


async def test_who_is_blocked_does_not_find_the_one_who_blocks_who_sees_a_card(world: SocialWorld) -> None:
    person, other, third = await world.member(), world.person(), await world.member()
    await other.change(bio="Secret")
    await person.block(other)
    with raises_status(*NOBODY):
        await other.look_at(person)
    assert await other.look_at_all(person, third) == [await other.look_at(third)]
    card = await person.look_at(other)
    assert (card.bio, card.relationship.blocking) == ("", True)
    assert (await third.look_at(other)).bio == "Secret"
    assert not (await third.look_at(other)).relationship.blocking


async def test_a_mute_is_seen_by_nobody_but_the_one_who_mutes(world: SocialWorld) -> None:
    person, other = await world.member(), world.person()
    await other.change(bio="Hello")
    before = await other.look_at(person)
    assert (await person.mute(other)).muting
    assert (await person.mute(other)).muting
    seen = await person.look_at(other)
    assert (seen.bio, seen.relationship.muting, seen.relationship.blocking) == ("Hello", True, False)
    assert await other.look_at(person) == before
    assert ids((await person.muted()).profiles) == [str(other.id)]
    assert (await other.muted()).profiles == []
    assert (await person.block(other)).muting
    assert not (await person.unmute(other)).muting
    assert (await person.muted()).profiles == []
    assert [type(each) for each in await told(world)] == [events.UserBlocked]


async def test_two_who_block_each_other_are_absent_to_each_other_until_both_take_it_back(world: SocialWorld) -> None:
    one, other = await world.member(), await world.member()
    await one.block(other)
    await store_block(world, other, one)
    for person, towards in ((one, other), (other, one)):
        assert (await person.blocked()).profiles == []
        with raises_status(*NOBODY):
            await person.unblock(towards)
    async with world.db.transaction() as tx:
        await tx.execute(delete(blocks).where(blocks.c.user_id == other.id))
    # What one had decided is there again.
    assert ids((await one.blocked()).profiles) == [str(other.id)]
    assert not (await one.unblock(other)).blocking


async def test_of_two_who_block_each_other_at_once_one_does_not_find_the_other(world: SocialWorld) -> None:
    pairs = [(await world.member(), await world.member()) for _ in range(12)]
    calls = [_outcome(call) for one, other in pairs for call in (one.block(other), other.block(one))]
    outcomes = await asyncio.gather(*calls)
    assert [sorted(outcomes[at : at + 2]) for at in range(0, len(calls), 2)] == [["", "USER_NOT_FOUND"]] * len(pairs)


async def test_nobody_takes_a_stance_towards_themselves(world: SocialWorld) -> None:
    person = await world.member()
    for call in (person.block, person.unblock, person.mute, person.unmute):
        with pytest.raises(AioRpcError) as refused:
            await call(person)
        assert (refused.value.code(), reason_of(refused.value)) == (StatusCode.INVALID_ARGUMENT, "SELF")
        assert violated_fields(refused.value) == ["user_id"]


async def walked(call: Any, page_size: int, between: Any = None) -> list[str]:
    """All ids of a list, page by page; `between` happens after the first page."""
    found: list[str] = []
    token = ""
    while True:
        page = await call(page_size=page_size, page_token=token)
        assert len(page.profiles) <= page_size
        assert bool(page.profiles) or not page.next_page_token
        found += ids(page.profiles)
        if not page.next_page_token:
            return found
        token = page.next_page_token
        if between:
            await between()
            between = None


async def store_block(world: SocialWorld, blocker: Person, blocked: Person) -> None:
    """As of two who blocked each other at the same time: who is blocked already does not find whom to block."""
    row = {"user_id": blocker.id, "subject_id": blocked.id, "id": uuid7(), "created_at": world.resources.clock()}
    async with world.db.transaction() as tx:
        await tx.execute(insert(blocks).values(row))


@pytest.mark.parametrize("stance", ["block", "mute"])
async def test_a_list_is_paged_without_gaps_although_rows_come_and_go(world: SocialWorld, stance: str) -> None:
    person = await world.member()
    others = [await world.member() for _ in range(8)]
    take, list_of = (person.block, person.blocked) if stance == "block" else (person.mute, person.muted)
    take_back = person.unblock if stance == "block" else person.unmute
    for each in others:
        await take(each)
    newest_first = [str(each.id) for each in reversed(others)]
    assert await walked(list_of, 3) == newest_first
    # Half of the people cannot be seen any more: a page is never empty while there is more.
    await others[1].delete()
    for each in others[2:6]:
        await store_block(world, each, person)
    assert await walked(list_of, 1) == [str(others[at].id) for at in (7, 6, 0)]
    async with world.db.transaction() as tx:
        await tx.execute(delete(blocks).where(blocks.c.subject_id == person.id))

    async def change() -> None:
        await take(await world.member())
        await take_back(others[4])

    seen = [each for each in newest_first if each != str(others[1].id)]
    assert await walked(list_of, 2, change) == [each for each in seen if each != str(others[4].id)]


async def test_a_page_token_works_for_its_own_list_alone(world: SocialWorld) -> None:
    person, stranger = await world.member(), await world.member()
    for _ in range(2):
        other = await world.member()
        await person.block(other)
        await person.mute(other)
    token = (await person.blocked(page_size=1)).next_page_token
    assert len((await person.blocked(page_token=token)).profiles) == 1
    for call in (
        person.muted(page_token=token),
        stranger.blocked(page_token=token),
        person.blocked(page_token=token[:-1]),
        person.blocked(page_size=101),
        person.blocked(page_size=-1),
    ):
        with raises_status(StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"):
            await call


async def test_a_person_who_never_had_a_profile_may_block(world: SocialWorld) -> None:
    person, other = world.person(), await world.member()
    assert (await person.block(other)).blocking
    with raises_status(*NOBODY):
        await other.block(person)


async def _outcome(call: Any) -> str:
    try:
        await call
    except AioRpcError as error:
        return reason_of(error)
    return ""


async def test_blocks_and_deletions_at_once_end_without_a_deadlock(world: SocialWorld) -> None:
    people: list[Person] = [await world.member() for _ in range(6)]
    calls = [one.block(other) for one in people for other in people if one is not other]
    calls += [one.unblock(other) for one in people for other in people if one is not other]
    outcomes = await asyncio.gather(*map(_outcome, calls), *(_outcome(each.delete()) for each in people[:2]))
    assert set(outcomes) <= {"", "USER_NOT_FOUND", "PROFILE_ERASING"}
