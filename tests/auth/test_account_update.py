"""Updates of a person's own profile."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.struct_pb2 import ListValue
from grpc import StatusCode
from grpc.aio import AioRpcError
from storymesh.auth.v1 import account_service_pb2 as pb
from storymesh.auth.v1.user_pb2 import ROLE_ADMIN, User
from storymesh.events.v1 import auth_events_pb2 as events

from tests.auth.conftest import AuthWorld, Member, outcomes
from tests.statuses import raises_status, violated_fields

pytestmark = pytest.mark.slow

ADA = "ada@example.org"


def listing(*values: Any) -> ListValue:
    preferences = ListValue()
    preferences.extend(values)
    return preferences


async def update(world: AuthWorld, member: Member, **changes: Any) -> User:
    request = pb.UpdateAccountRequest(**changes)
    return (await world.accounts.UpdateAccount(request, metadata=member.auth)).user


@pytest.fixture
async def ada(world: AuthWorld) -> Member:
    member = await world.register(ADA, username="ada")
    changes = {"first_name": "Ada", "last_name": "Lovelace", "preferences": listing("sea", "engines")}
    member.user.CopyFrom(await update(world, member, **changes))
    return member


async def test_what_is_set_changes_and_the_rest_stays(world: AuthWorld, ada: Member) -> None:
    assert (ada.user.first_name, ada.user.last_name, list(ada.user.preferences)) == (
        "Ada",
        "Lovelace",
        ["sea", "engines"],
    )
    user = await update(world, ada, last_name="King")
    assert (user.username, user.first_name, user.last_name) == ("ada", "Ada", "King")
    assert list(user.preferences) == ["sea", "engines"]
    assert await world.account(ada) == user
    user = await update(world, ada, username="Countess")
    assert (user.username, user.last_name) == ("Countess", "King")


async def test_the_username_signs_in_from_then_on_and_the_former_one_does_not(world: AuthWorld, ada: Member) -> None:
    await update(world, ada, username="Countess")
    assert (await world.sign_in("countess")).user.id == ada.user.id
    with raises_status(StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"):
        await world.sign_in("ada")


async def test_an_empty_list_removes_all_preferences(world: AuthWorld, ada: Member) -> None:
    assert list((await update(world, ada, preferences=listing())).preferences) == []
    assert list((await world.account(ada)).preferences) == []


async def test_empty_texts_remove_names(world: AuthWorld, ada: Member) -> None:
    user = await update(world, ada, username="", first_name="", last_name="")
    assert (user.username, user.first_name, user.last_name) == ("", "", "")
    assert await world.sign_in(ADA)
    with raises_status(StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"):
        await world.sign_in("ada")
    bob = await world.register("bob@example.org")
    # No username is not a taken one: several accounts can have none.
    await update(world, bob, username="")
    assert (await update(world, bob, username="ada")).username == "ada"


async def test_a_change_is_told_once_and_none_is_not(world: AuthWorld, ada: Member) -> None:
    before = await world.published()
    for changes in ({}, {"first_name": "Ada"}, {"username": "ada"}, {"preferences": listing("sea", "engines")}):
        assert await update(world, ada, **changes) == ada.user
    assert await world.published() == before
    await update(world, ada, preferences=listing("engines", "sea"))
    assert [event.user_id for event in await world.told(events.UserUpdated)] == [ada.user.id] * 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("username", "1ada"),
        ("username", "a@b.example"),
        ("username", "ab"),
        ("username", "a" * 33),
        ("username", "\N{CYRILLIC SMALL LETTER A}da"),
        ("username", "ada\n"),
        ("first_name", "Ada\n"),
        ("first_name", "x" * 65),
        ("last_name", "\0"),
        ("preferences", listing("sea", "sea")),
        ("preferences", listing("x" * 21)),
        ("preferences", listing("1", "2", "3", "4", "5", "6")),
        ("preferences", listing(" ")),
        ("preferences", listing("")),
        ("preferences", listing("sea\n")),
        ("preferences", listing("sea", 1.0)),
        ("preferences", listing("sea", None)),
        ("preferences", listing(["sea"])),
        ("preferences", listing({"sea": "deep"})),
    ],
)
async def test_an_invalid_field_is_named_and_nothing_changes(
    world: AuthWorld, ada: Member, field: str, value: Any
) -> None:
    with pytest.raises(AioRpcError) as raised:
        await update(world, ada, **{"last_name": "King", field: value})
    assert raised.value.code() is StatusCode.INVALID_ARGUMENT
    assert {violated.partition("[")[0] for violated in violated_fields(raised.value)} == {field}
    assert await world.account(ada) == ada.user


async def test_a_taken_username_is_refused_and_nothing_else_of_the_change_is_made(
    world: AuthWorld, ada: Member
) -> None:
    bob = await world.register("bob@example.org", username="bob")
    with raises_status(StatusCode.ALREADY_EXISTS, "USERNAME_TAKEN"):
        await update(world, bob, username="ADA", first_name="Bob")
    assert await world.account(bob) == bob.user
    # Only the letter case of their own username changes, which is free.
    assert (await update(world, ada, username="ADA")).username == "ADA"


async def test_of_two_accounts_that_take_one_username_at_the_same_time_one_gets_it(world: AuthWorld) -> None:
    members = [await world.register(f"person{number}@example.org") for number in range(4)]
    reasons = await outcomes(*(update(world, member, username="ada") for member in members))
    assert reasons == {"": 1, "USERNAME_TAKEN": 3}


async def test_simultaneous_changes_of_different_fields_are_all_kept(world: AuthWorld, ada: Member) -> None:
    await outcomes(
        update(world, ada, first_name="Augusta"),
        update(world, ada, last_name="King"),
        update(world, ada, username="countess"),
        update(world, ada, preferences=listing("looms")),
    )
    user = await world.account(ada)
    assert (user.first_name, user.last_name, user.username) == ("Augusta", "King", "countess")
    assert list(user.preferences) == ["looms"]


async def test_a_session_that_has_ended_changes_nothing(world: AuthWorld, ada: Member) -> None:
    await world.execute("UPDATE sessions SET revoked_at = created_at, revoke_reason = 'REVOKED'")
    with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
        await update(world, ada, first_name="Augusta")
    assert await world.scalar("SELECT first_name FROM users") == "Ada"


@pytest.mark.parametrize("table", ["outbox", "audit_entries"])
async def test_a_change_that_cannot_be_recorded_whole_did_not_happen(world: AuthWorld, ada: Member, table: str) -> None:
    async with world.refused_by(table):
        with raises_status(StatusCode.INTERNAL, "INTERNAL"):
            await update(world, ada, username="countess")
    assert await world.account(ada) == ada.user


async def test_nobody_makes_themselves_an_administrator(world: AuthWorld, ada: Member) -> None:
    """The contract has no field for the role, and unknown fields change nothing."""
    request = pb.UpdateAccountRequest.FromString(User(role=ROLE_ADMIN).SerializeToString())
    assert (await world.accounts.UpdateAccount(request, metadata=ada.auth)).user == ada.user
    assert await world.scalar("SELECT role FROM users") == "USER"
