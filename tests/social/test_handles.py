"""Handles: unique, in one form, seldom changed, and not to be had by others for a time after they were left."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta

import pytest
from google.rpc.error_details_pb2 import RetryInfo
from grpc import StatusCode
from grpc.aio import AioRpcError
from sqlalchemy import select

from services.social.tables import former_handles, handle_changes
from tests.social.conftest import Person, SocialWorld
from tests.statuses import detail, raises_status, reason_of, violated_fields

TAKEN = (StatusCode.ALREADY_EXISTS, "HANDLE_TAKEN")
TOO_OFTEN = (StatusCode.RESOURCE_EXHAUSTED, "HANDLE_CHANGED_TOO_OFTEN")
NOBODY = (StatusCode.NOT_FOUND, "USER_NOT_FOUND")
DAY = timedelta(days=1)


@pytest.mark.parametrize(
    "handle",
    [
        "",
        "ab",
        "a" * 31,
        "Ada_l",
        "\u0430da_l",
        "ada\u200bl",
        "ada_l\n",
        " ada_l",
        "ada-l",
        "ada.l",
        "\uff41da_l",
        "ada\u0131",
        "ada\u0301",
        "ada\x00l",
    ],
)
async def test_a_handle_of_another_form_is_refused(world: SocialWorld, handle: str) -> None:
    person = await world.member()
    for call in (person.change(handle=handle), person.find(handle)):
        with pytest.raises(AioRpcError) as refused:
            await call
        assert refused.value.code() is StatusCode.INVALID_ARGUMENT
        assert violated_fields(refused.value) == ["handle"]


@pytest.mark.parametrize(
    "handle",
    ["admin", "adm1n", "a_d_m_1_n", "r00t", "supp0rt", "moderator", "mod", "story_mesh", "st0rymesh_team", "m0derat0r",
     "the_storymesh", "user_123456789012"],
)  # fmt: skip
async def test_a_handle_that_could_be_taken_for_the_operators_is_refused(world: SocialWorld, handle: str) -> None:
    person = await world.member()
    with pytest.raises(AioRpcError) as refused:
        await person.change(handle=handle)
    assert refused.value.code() is StatusCode.INVALID_ARGUMENT
    assert violated_fields(refused.value) == ["handle"]


@pytest.mark.parametrize("handle", ["abc", "a" * 30, "___", "007", "user_experience", "badminton", "modern_art"])
async def test_any_other_word_is_a_handle(world: SocialWorld, handle: str) -> None:
    person = world.person()
    assert (await person.change(handle=handle)).handle == handle
    assert (await (await world.member()).find(handle)).user_id == str(person.id)


async def test_of_64_who_take_a_handle_at_once_one_has_it(world: SocialWorld) -> None:
    people = [world.person() for _ in range(64)]
    outcomes = await asyncio.gather(*(_taken(each, "ada_l") for each in people))
    assert Counter(outcomes) == {"": 1, "HANDLE_TAKEN": 63}
    winner = people[outcomes.index("")]
    assert (await winner.find("ada_l")).user_id == str(winner.id)
    # Whoever lost keeps the handle from before, and it counted as no change.
    loser = people[outcomes.index("HANDLE_TAKEN")]
    for handle in ("ada_2", "ada_3"):
        await loser.change(handle=handle)


async def _taken(person: Person, handle: str) -> str:
    try:
        await person.change(handle=handle)
    except AioRpcError as error:
        return reason_of(error)
    return ""


async def test_a_handle_changes_twice_in_14_days(world: SocialWorld) -> None:
    person, other = world.person(), world.person()
    await other.change(handle="other_one")
    await person.change(handle="first_one")
    world.passed = DAY
    await person.change(handle="second_one")
    for handle in ("third_one", "first_one", "other_one"):
        with pytest.raises(AioRpcError) as refused:
            await person.change(handle=handle, bio="not this either")
        assert (refused.value.code(), reason_of(refused.value)) == TOO_OFTEN
        retry = detail(refused.value, RetryInfo)
        assert retry is not None
        assert timedelta(days=12.9) < retry.retry_delay.ToTimedelta() <= 13 * DAY
    # The handle that one has is no change.
    assert (await person.change(handle="second_one", bio="this")).bio == "this"
    world.passed = 14 * DAY + timedelta(minutes=1)
    assert (await person.change(handle="third_one")).handle == "third_one"
    with raises_status(*TOO_OFTEN):
        await person.change(handle="fourth_one")


async def test_a_profile_deleted_and_made_anew_allows_no_more_changes(world: SocialWorld) -> None:
    person = world.person()
    for handle in ("first_one", "second_one"):
        await person.change(handle=handle)
    await person.delete()
    await world.work().erasing.erase_profile(person.id)
    with raises_status(*TOO_OFTEN):
        await person.change(handle="third_one")
    assert (await person.change(bio="anew")).handle.startswith("user_")


async def test_a_former_handle_is_its_owners_for_90_days_and_leads_to_nobody(world: SocialWorld) -> None:
    person, other = world.person(), world.person()
    begun_with = (await person.own()).handle
    await person.change(handle="first_one")
    await person.change(handle="second_one")
    for former in (begun_with, "first_one"):
        with raises_status(*NOBODY):
            await other.find(former)
    with raises_status(*TAKEN):
        await other.change(handle="first_one")
    world.passed = 89 * DAY
    with raises_status(*TAKEN):
        await other.change(handle="first_one")
    # Its owner takes it back, and leaves it again: the time begins anew.
    assert (await person.change(handle="first_one")).handle == "first_one"
    assert (await person.change(handle=begun_with)).handle == begun_with
    world.passed = 178 * DAY
    with raises_status(*TAKEN):
        await other.change(handle="first_one")
    world.passed = 180 * DAY
    assert (await other.change(handle="first_one")).handle == "first_one"
    with raises_status(*TAKEN):
        await person.change(handle="first_one")


async def test_the_handle_of_a_deleted_account_is_nobodys_for_90_days(world: SocialWorld) -> None:
    person, other = world.person(), world.person()
    await person.change(handle="first_one")
    await person.change(handle="second_one")
    await world.work().erasing.erase(person.id)
    for handle in ("first_one", "second_one"):
        with raises_status(*TAKEN):
            await other.change(handle=handle)
    async with world.db.single() as tx:
        assert set(await tx.scalars(select(former_handles.c.owner_id))) == {None}
    world.passed = 91 * DAY
    for handle in ("first_one", "second_one"):
        assert (await other.change(handle=handle)).handle == handle


async def test_whoever_takes_a_handle_while_its_owner_leaves_it_does_not_get_it(world: SocialWorld) -> None:
    for number in range(8):
        owner, *others = (world.person() for _ in range(5))
        handle = f"ada_{number}_l"
        await owner.change(handle=handle)
        leaving = owner.change(handle=f"left_{number}_l") if number % 2 else owner.delete()
        outcomes = await asyncio.gather(leaving, *(_taken(each, handle) for each in others))
        assert set(outcomes[1:]) == {"HANDLE_TAKEN"}


async def test_two_who_exchange_their_handles_wait_for_each_other_in_no_circle(world: SocialWorld) -> None:
    one, other = world.person(), world.person()
    await one.change(handle="first_one")
    await other.change(handle="other_one")
    await one.change(handle="second_one")
    await other.change(handle="further_one")
    world.passed = 15 * DAY
    outcomes = await asyncio.gather(
        _taken(one, "first_one"), _taken(other, "other_one"), _taken(one, "other_one"), _taken(other, "first_one")
    )
    assert set(outcomes) <= {"", "HANDLE_TAKEN"}


async def test_reservations_and_changes_are_forgotten_once_they_count_no_more(world: SocialWorld) -> None:
    person = world.person()
    await person.change(handle="first_one")
    await person.change(handle="second_one")

    async def rows() -> tuple[int, int]:
        async with world.db.single() as tx:
            former = list(await tx.scalars(select(former_handles)))
            changes = list(await tx.scalars(select(handle_changes)))
        return len(former), len(changes)

    assert await rows() == (2, 2)
    for passed, left in ((14 * DAY, (2, 2)), (16 * DAY, (2, 0)), (90 * DAY, (2, 0)), (92 * DAY, (0, 0))):
        world.passed = passed
        await world.work().pruning.prune()
        assert await rows() == left
