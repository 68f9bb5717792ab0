"""Usernames at the end of a registration: a taken one costs no new code, and nobody can list them."""

from __future__ import annotations

import asyncio

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError

from tests.auth.conftest import AuthWorld, outcomes, wrong
from tests.statuses import raises_status, violated_fields

pytestmark = pytest.mark.slow

ADA, BOB = "ada@example.org", "bob@example.org"
TAKEN = ("taken0", "taken1", "taken2", "taken3", "taken4", "taken5")


async def taken(world: AuthWorld, *names: str) -> None:
    """Give each of the names to an account, copied from the first person's."""
    await world.register("first@example.org")
    columns = "first_name, last_name, preferences, role, password_hash, password_changed_at, created_at"
    await world.execute(
        f"INSERT INTO users (id, email, email_canonical, username, username_canonical, {columns}) "
        f"SELECT gen_random_uuid(), name || '@example.org', name || '@example.org', name, name, {columns} "
        "FROM users, unnest(CAST(:names AS text[])) AS name WHERE email = 'first@example.org'",
        names=list(names),
    )


async def refused(world: AuthWorld, registration: str, code: str, username: str | None) -> None:
    with raises_status(StatusCode.ALREADY_EXISTS, "USERNAME_TAKEN"):
        await world.complete(registration, code, username=username)


async def test_another_username_is_taken_with_the_same_code(world: AuthWorld) -> None:
    await taken(world, *TAKEN)
    registration = await world.start(ADA, username="Taken0")
    code = await world.code(registration)
    await refused(world, registration, code, None)
    await refused(world, registration, code, "TAKEN1")
    member = await world.complete(registration, code, username="Countess")
    assert member.user.username == "Countess"
    assert await world.sign_in("countess")
    assert len(await world.mails(registration)) == 1


@pytest.mark.parametrize(
    ("started_with", "completed_with", "has"),
    [
        ("ada", None, "ada"),
        ("ada", "", ""),
        ("ada", "lovelace", "lovelace"),
        (None, "lovelace", "lovelace"),
        (None, "", ""),
    ],
)
async def test_unset_keeps_the_username_and_empty_is_none(
    world: AuthWorld, started_with: str | None, completed_with: str | None, has: str
) -> None:
    registration = await world.start(ADA, username=started_with)
    member = await world.complete(registration, await world.code(registration), username=completed_with)
    assert member.user.username == has


async def test_nobody_learns_more_names_than_it_takes_to_find_one(world: AuthWorld) -> None:
    await taken(world, *TAKEN)
    registration = await world.start(ADA)
    code = await world.code(registration)
    for name in (*TAKEN[:5], *TAKEN[:5]):
        # Trying the same name again tells nothing new, and is free.
        await refused(world, registration, code, name)
    for name in (TAKEN[5], "free", "taken6"):
        with raises_status(StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_USERNAMES"):
            await world.complete(registration, code, username=name)
    assert (await world.complete(registration, code, username="")).user.username == ""


async def test_names_are_counted_although_they_are_tried_at_once(world: AuthWorld) -> None:
    await taken(world, *TAKEN)
    registration = await world.start(ADA)
    code = await world.code(registration)
    told: set[str] = set()

    async def ask(name: str) -> None:
        for _ in range(20):
            reasons = await outcomes(world.complete(registration, code, username=name))
            if reasons["USERNAME_TAKEN"]:
                told.add(name)

    await asyncio.gather(*map(ask, TAKEN))
    assert len(told) <= 5
    assert await world.complete(registration, code, username="")


async def test_redis_does_not_decide_how_many_there_were(world: AuthWorld) -> None:
    await taken(world, *TAKEN)
    registration = await world.start(ADA)
    code = await world.code(registration)
    for name in TAKEN[:5]:
        async with world.forgotten_by_redis(registration):
            await refused(world, registration, code, name)
    with raises_status(StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_USERNAMES"):
        await world.complete(registration, code, username=TAKEN[5])


async def test_a_wrong_code_tells_of_no_username(world: AuthWorld) -> None:
    await taken(world, *TAKEN)
    registration = await world.start(ADA)
    code = await world.code(registration)
    for name in TAKEN[:3]:
        with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
            await world.complete(registration, wrong(code), username=name)


@pytest.mark.parametrize("name", ["1ada", "a@b.example", "ad", "a" * 33, " ada"])
async def test_a_malformed_username_is_named_and_costs_no_attempt(world: AuthWorld, name: str) -> None:
    registration = await world.start(ADA)
    code = await world.code(registration)
    for _ in range(6):
        with pytest.raises(AioRpcError) as raised:
            await world.complete(registration, code, username=name)
        assert violated_fields(raised.value) == ["username"]
    assert await world.complete(registration, code)


async def test_of_two_who_choose_one_name_at_once_one_gets_it_and_the_other_chooses_again(world: AuthWorld) -> None:
    registrations = [await world.start(email) for email in (ADA, BOB)]
    codes = [await world.code(each) for each in registrations]
    calls = (
        world.complete(registration, code, username="ada")
        for registration, code in zip(registrations, codes, strict=True)
    )
    assert await outcomes(*calls) == {"": 1, "USERNAME_TAKEN": 1}
    again = (
        world.complete(registration, code, username="eve")
        for registration, code in zip(registrations, codes, strict=True)
    )
    assert await outcomes(*again) == {"": 1, "CODE_INVALID": 1}
