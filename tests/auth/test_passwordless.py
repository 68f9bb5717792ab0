"""Accounts without a password sign in by mailed codes, and give a code wherever others give a password."""

from __future__ import annotations

from typing import Any

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError
from storymesh.auth.v1 import account_service_pb2 as pb
from storymesh.auth.v1 import registration_service_pb2
from storymesh.events.v1 import auth_events_pb2 as events

from tests.auth.conftest import PASSWORD, AuthWorld, MakeWorld, Member, outcomes, wrong
from tests.auth.test_password_change import NEW, NEWER, violation
from tests.auth.work import work
from tests.statuses import raises_status, reason_of, violated_fields

pytestmark = pytest.mark.slow

ADA, BOB, COUNTESS, NOBODY = "ada@example.org", "bob@example.org", "countess@example.org", "nobody@example.org"


@pytest.fixture
async def world(make_world: MakeWorld) -> AuthWorld:
    return await make_world(code_cooldown_seconds=0, live_registrations=10, codes_an_hour=20, codes_a_day=20)


@pytest.fixture
async def ada(world: AuthWorld) -> Member:
    return await world.register(ADA, password=None, username="ada")


async def proof(world: AuthWorld, email: str = ADA) -> dict[str, str]:
    """A code to sign in, not yet redeemed."""
    challenge = await world.start_code(email)
    return {"challenge_id": challenge, "code": await world.code(challenge)}


async def test_a_registration_that_leaves_the_password_out_makes_an_account_that_signs_in_by_codes(
    world: AuthWorld,
) -> None:
    started = await world.registrations.CreateRegistration(
        registration_service_pb2.CreateRegistrationRequest(email=ADA)
    )
    ada = await world.complete(started.registration_id, await world.code(started.registration_id))
    assert not ada.user.has_password
    assert not (await world.account(ada)).has_password
    assert await world.scalar("SELECT password_hash IS NULL FROM users")
    again = await world.complete_code(**await proof(world))
    assert again.user == ada.user
    assert await world.refresh(again.tokens.refresh_token)


async def test_an_empty_password_is_not_one_that_was_left_out(world: AuthWorld) -> None:
    """A client that sends an empty field must not create an account without a password."""
    with pytest.raises(AioRpcError) as raised:
        await world.start(ADA, password="")
    assert violated_fields(raised.value) == ["password"]


async def test_whoever_has_a_password_sees_that(world: AuthWorld) -> None:
    bob = await world.register(BOB)
    assert bob.user.has_password
    assert (await world.account(bob)).has_password


class TestSigningInWithAPassword:
    @pytest.mark.parametrize("password", [PASSWORD, "x", "None", "\0", " "])
    @pytest.mark.parametrize("login", [ADA, "ada"])
    async def test_no_password_signs_in(self, world: AuthWorld, ada: Member, login: str, password: str) -> None:
        with raises_status(StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"):
            await world.sign_in(login, password)

    async def test_it_takes_the_work_of_a_wrong_password_and_of_no_account(self, world: AuthWorld, ada: Member) -> None:
        await world.register(BOB)

        async def failing(email: str) -> Any:
            return await work(world, lambda: world.sign_in(email, "not the right password"))

        await failing(NOBODY)  # the first call does all one-time work
        assert await failing(ADA) == await failing("another@example.org") == await failing(BOB)

    async def test_guessing_slows_down_and_disables_nothing(self, make_world: MakeWorld) -> None:
        """There is no password to disable, and strangers' guesses must not affect the owner's codes."""
        world = await make_world(sign_in_most_failures=3)
        await world.register(ADA, password=None)
        code = await proof(world)
        for _ in range(5):
            with raises_status(StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"):
                await world.sign_in(ADA)
        with raises_status(StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_SIGN_INS"):
            await world.sign_in(ADA)
        assert await world.told(events.PasswordDisabled) == []
        assert await world.complete_code(**code)


class TestCodesInPlaceOfThePassword:
    async def test_the_first_password_is_set_by_a_code(self, world: AuthWorld, ada: Member) -> None:
        other = await world.complete_code(**await proof(world))
        await world.change_password(ada, NEW, current="", **await proof(world))
        assert (await world.account(ada)).has_password
        assert (await world.sign_in(ADA, NEW)).user.has_password
        with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
            await world.account(other)
        assert [event.user_id for event in await world.told(events.PasswordChanged)] == [ada.user.id]
        await world.change_password(ada, NEWER, current=NEW)

    async def test_the_first_password_is_set_by_a_reset(self, world: AuthWorld, ada: Member) -> None:
        reset = await world.start_reset(ADA)
        await world.complete_reset(reset, await world.code(reset), NEW)
        assert (await world.sign_in(ADA, NEW)).user.has_password

    async def test_the_account_moves_to_another_address_by_a_code(self, world: AuthWorld, ada: Member) -> None:
        move = await world.start_email_change(ada, COUNTESS, password="", **await proof(world))
        user = await world.complete_email_change(ada, move, await world.code(move))
        assert (user.email, user.has_password) == (COUNTESS, False)
        assert (await world.complete_code(**await proof(world, COUNTESS))).user == user

    async def test_the_account_is_deleted_by_a_code(self, world: AuthWorld, ada: Member) -> None:
        await world.delete_account(ada, **await proof(world))
        assert await world.scalar("SELECT count(*) FROM users") == 0

    async def test_a_code_does_for_accounts_with_a_password_too(self, world: AuthWorld) -> None:
        bob = await world.register(BOB)
        move = await world.start_email_change(bob, COUNTESS, password="", **await proof(world, BOB))
        await world.change_password(bob, NEW, current="", **await proof(world, BOB))
        assert await world.sign_in(BOB, NEW)
        with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
            await world.complete_email_change(bob, move, await world.code(move))

    async def test_who_proves_the_address_is_not_told_the_password(self, world: AuthWorld) -> None:
        bob = await world.register(BOB)
        await world.change_password(bob, PASSWORD, current="", **await proof(world, BOB))
        assert await world.sign_in(BOB)


def asking(world: AuthWorld, member: Member, what: str, **given: str) -> Any:
    match what:
        case "change":
            return world.change_password(member, NEW, current=given.pop("password", ""), **given)
        case "move":
            return world.start_email_change(member, COUNTESS, password=given.pop("password", ""), **given)
        case _:
            return world.delete_account(member, **given)


@pytest.mark.parametrize("what", ["change", "move", "delete"])
class TestEveryOperationThatNeedsAProof:
    async def test_without_one_it_is_refused(self, world: AuthWorld, ada: Member, what: str) -> None:
        with raises_status(StatusCode.FAILED_PRECONDITION, "REAUTH_REQUIRED"):
            await asking(world, ada, what)

    async def test_no_password_is_right(self, world: AuthWorld, ada: Member, what: str) -> None:
        for _ in range(5):
            with raises_status(StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"):
                await asking(world, ada, what, password=PASSWORD)
        with raises_status(StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_SIGN_INS"):
            await asking(world, ada, what, password=PASSWORD)
        assert await world.told(events.PasswordDisabled) == []

    @pytest.mark.parametrize("half", ["challenge_id", "code"])
    async def test_half_a_code_is_told_to_be_that(self, world: AuthWorld, ada: Member, what: str, half: str) -> None:
        given = await proof(world)
        with pytest.raises(AioRpcError) as raised:
            await asking(world, ada, what, password=PASSWORD, **{half: given[half]})
        assert raised.value.code() is StatusCode.INVALID_ARGUMENT
        assert len(violated_fields(raised.value)) == 1

    async def test_a_wrong_code_counts_whatever_the_password(self, world: AuthWorld, what: str) -> None:
        bob = await world.register(BOB)
        given = await proof(world, BOB)
        for _ in range(5):
            with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
                await asking(world, bob, what, **{**given, "code": wrong(given["code"])}, password=PASSWORD)
        with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
            await asking(world, bob, what, **given)

    async def test_somebody_elses_code_is_refused_and_stays_good_for_them(
        self, world: AuthWorld, ada: Member, what: str
    ) -> None:
        bob = await world.register(BOB)
        given = await proof(world, BOB)
        for _ in range(6):
            with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
                await asking(world, ada, what, **given)
        assert (await world.complete_code(**given)).user == bob.user

    async def test_a_code_to_reset_the_password_is_none_to_do_it(
        self, world: AuthWorld, ada: Member, what: str
    ) -> None:
        reset = await world.start_reset(ADA)
        with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
            await asking(world, ada, what, challenge_id=reset, code=await world.code(reset))

    async def test_a_code_does_it_once(self, world: AuthWorld, ada: Member, what: str) -> None:
        given = await proof(world)
        reasons = await outcomes(*(asking(world, ada, what, **given) for _ in range(8)))
        assert reasons[""] == 1
        assert set(reasons) <= {"", "CODE_INVALID", "SESSION_REVOKED"}

    async def test_a_session_that_has_ended_does_nothing(self, world: AuthWorld, ada: Member, what: str) -> None:
        given = await proof(world)
        await world.execute("UPDATE sessions SET revoked_at = created_at, revoke_reason = 'REVOKED'")
        with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
            await asking(world, ada, what, **given)


async def test_a_refused_password_or_address_leaves_the_code_good(world: AuthWorld, ada: Member) -> None:
    given = await proof(world)
    for _ in range(6):
        assert await violation(world.change_password(ada, "short", current="", **given)) == (
            "new_password",
            "PASSWORD_TOO_SHORT",
        )
        with pytest.raises(AioRpcError) as raised:
            await world.start_email_change(ada, ADA, password="", **given)
        assert reason_of(raised.value) == "INVALID_ARGUMENT"
    await world.change_password(ada, NEW, current="", **given)


async def test_a_code_that_changed_the_password_ends_what_was_counted_against_it(world: AuthWorld) -> None:
    bob = await world.register(BOB)
    for _ in range(5):
        with raises_status(StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"):
            await world.change_password(bob, NEW, current="not the right password")
    await world.change_password(bob, NEW, current="", **await proof(world, BOB))
    await world.change_password(bob, NEWER, current=NEW)


async def test_the_contract_still_names_an_empty_new_password(world: AuthWorld, ada: Member) -> None:
    request = pb.ChangePasswordRequest(**await proof(world))
    with pytest.raises(AioRpcError) as raised:
        await world.accounts.ChangePassword(request, metadata=ada.auth)
    assert violated_fields(raised.value) == ["new_password"]
