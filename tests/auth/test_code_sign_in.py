"""Sign-in with a mailed code."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import jwt
import pytest
from grpc import StatusCode
from storymesh.auth.v1 import session_service_pb2 as pb
from storymesh.events.v1 import auth_events_pb2 as events

from tests.auth.conftest import PASSWORD, AuthWorld, MakeWorld, Member, outcomes, wrong
from tests.statuses import raises_status
from tests.waiting import until

pytestmark = pytest.mark.slow

ADA, BOB = "ada@example.org", "bob@example.org"
NEW_PASSWORD = "an entirely different phrase"


@pytest.fixture
async def ada(world: AuthWorld) -> Member:
    return await world.register(ADA, username="ada")


async def refused(call: Awaitable[Any]) -> None:
    with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
        await call


async def test_a_mailed_code_of_eight_digits_signs_in_on_another_device(world: AuthWorld, ada: Member) -> None:
    started = await world.sessions.StartSessionCode(pb.StartSessionCodeRequest(email="ADA@Example.org"))
    assert UUID(started.challenge_id).version == 4
    assert started.code_expire_time.ToDatetime(world.clock().tzinfo) == world.clock() + timedelta(minutes=5)
    (mail,) = await world.mails(started.challenge_id)
    assert (mail.email, len(mail.code)) == (ADA, 8)
    assert (await world.told(events.CodeIssued))[-1].purpose == events.CODE_PURPOSE_SIGN_IN
    request = pb.CompleteSessionCodeRequest(
        challenge_id=started.challenge_id, code=mail.code, device_name="Ada's tablet"
    )
    answer = await world.sessions.CompleteSessionCode(request)
    claims = jwt.decode(answer.tokens.access_token, options={"verify_signature": False})
    assert (answer.user, claims["amr"]) == (ada.user, ["otp"])
    assert UUID(claims["sid"]) != ada.session_id
    assert (
        await world.scalar("SELECT device_name FROM sessions WHERE id = :id", id=UUID(claims["sid"])) == "Ada's tablet"
    )
    assert await world.refresh(answer.tokens.refresh_token)


async def test_a_device_that_signed_in_with_a_code_is_known_from_then_on(world: AuthWorld, ada: Member) -> None:
    challenge = await world.start_code(ADA)
    member = await world.complete_code(challenge, await world.code(challenge))
    again = await world.sign_in(ADA, device_token=member.device_token)
    assert again.device_token == member.device_token


async def test_a_code_works_once(world: AuthWorld, ada: Member) -> None:
    challenge = await world.start_code(ADA)
    code = await world.code(challenge)
    await world.complete_code(challenge, code)
    await refused(world.complete_code(challenge, code))


async def test_a_code_stays_used_when_redis_forgets_that_it_was(world: AuthWorld, ada: Member) -> None:
    challenge = await world.start_code(ADA)
    code = await world.code(challenge)
    async with world.forgotten_by_redis(challenge):
        await world.complete_code(challenge, code)
    await refused(world.complete_code(challenge, code))
    assert await world.scalar("SELECT count(*) FROM sessions") == 2


async def test_a_code_ends_after_five_minutes(world: AuthWorld, ada: Member) -> None:
    challenge = await world.start_code(ADA)
    world.clock.advance(minutes=4, seconds=59)
    other = await world.start_code(ADA)
    assert await world.complete_code(challenge, await world.code(challenge))
    world.clock.advance(minutes=5)
    await refused(world.complete_code(other, await world.code(other)))


async def test_of_64_simultaneous_completions_one_signs_in(world: AuthWorld, ada: Member) -> None:
    challenge = await world.start_code(ADA)
    code = await world.code(challenge)
    reasons = await outcomes(*(world.complete_code(challenge, code) for _ in range(64)))
    assert reasons == {"": 1, "CODE_INVALID": 63}
    assert await world.scalar("SELECT count(*) FROM sessions") == 2


async def test_of_64_simultaneous_wrong_codes_five_are_looked_at(world: AuthWorld, ada: Member) -> None:
    challenge = await world.start_code(ADA)
    code = await world.code(challenge)
    guesses = [f"{number:08}" for number in range(65) if f"{number:08}" != code][:64]
    assert await outcomes(*(world.complete_code(challenge, guess) for guess in guesses)) == {"CODE_INVALID": 64}
    (key,) = await world.redis.keys(f"codes:*:{challenge}")
    assert int(await world.redis.hget(key, "attempts") or 0) == 5
    await refused(world.complete_code(challenge, code))


class TestWhatACodeIsBoundTo:
    async def test_a_code_serves_no_other_purpose_and_no_other_challenge_or_account(
        self, world: AuthWorld, ada: Member
    ) -> None:
        bob = await world.register(BOB)
        registration = await world.start("carol@example.org")
        challenges = {
            "sign-in": await world.start_code(ADA),
            "reset": await world.start_reset(ADA),
            "change": await world.start_email_change(ada, "countess@example.org"),
            "bob's sign-in": await world.start_code(BOB),
        }
        codes = {name: await world.code(challenge) for name, challenge in challenges.items()}
        redeem: dict[str, Callable[[str, str], Awaitable[Any]]] = {
            "sign-in": world.complete_code,
            "reset": lambda challenge, code: world.complete_reset(challenge, code, NEW_PASSWORD),
            "change": lambda challenge, code: world.complete_email_change(ada, challenge, code),
            "bob's change": lambda challenge, code: world.complete_email_change(bob, challenge, code),
            "bob's deletion": lambda challenge, code: world.delete_account(bob, challenge_id=challenge, code=code),
        }
        right = {("sign-in", "sign-in"), ("sign-in", "bob's sign-in"), ("reset", "reset"), ("change", "change")}
        right.add(("bob's deletion", "bob's sign-in"))
        for how, call in redeem.items():
            # A registration's challenge is valid for no other purpose.
            await refused(call(registration, "12345678"))
            for what, challenge in challenges.items():
                if (how, what) not in right:
                    await refused(call(challenge, codes[what]))
        # A code answers no other challenge of the same purpose.
        if codes["sign-in"] != codes["bob's sign-in"]:
            await refused(world.complete_code(challenges["sign-in"], codes["bob's sign-in"]))
        for challenge in (*challenges.values(), str(uuid4())):
            await refused(world.complete(challenge, "123456"))
        await world.complete(registration, await world.code(registration))
        await world.complete_code(challenges["sign-in"], codes["sign-in"])
        await world.complete_email_change(ada, challenges["change"], codes["change"])
        await refused(world.complete_reset(challenges["reset"], codes["reset"], NEW_PASSWORD))
        await world.delete_account(bob, challenge_id=challenges["bob's sign-in"], code=codes["bob's sign-in"])

    async def test_a_code_is_void_once_the_account_has_another_address(self, world: AuthWorld, ada: Member) -> None:
        sign_in, reset = await world.start_code(ADA), await world.start_reset(ADA)
        change = await world.start_email_change(ada, "countess@example.org")
        await world.complete_email_change(ada, change, await world.code(change))
        await refused(world.complete_code(sign_in, await world.code(sign_in)))
        await refused(world.complete_reset(reset, await world.code(reset), NEW_PASSWORD))
        await refused(world.delete_account(ada, challenge_id=sign_in, code=await world.code(sign_in)))
        assert await world.sign_in("countess@example.org")

    async def test_a_code_is_void_for_whoever_registers_the_address_later(self, world: AuthWorld, ada: Member) -> None:
        challenge = await world.start_code(ADA)
        code = await world.code(challenge)
        await world.delete_account(ada, password=PASSWORD)
        world.clock.advance(minutes=1)
        await world.register(ADA)
        await refused(world.complete_code(challenge, code))


class TestUnknownAddresses:
    async def test_nothing_is_mailed_and_no_address_is_kept(self, world: AuthWorld) -> None:
        challenge = await world.start_code("nobody@example.org")
        (mail,) = await world.mails(challenge)
        assert mail.email == ""
        assert await world.scalar("SELECT user_id IS NULL AND email IS NULL FROM challenges")
        dump = await world.scalar(
            "SELECT (SELECT string_agg(c::text, '') FROM challenges c) || (SELECT string_agg(o::text, '') FROM outbox o)"
            " || coalesce((SELECT string_agg(a::text, '') FROM audit_entries a), '')"
        )
        assert "nobody" not in str(dump)
        assert not [key for key in await world.redis.keys("*") if b"nobody" in key]
        await refused(world.complete_code(challenge, mail.code))

    async def test_the_code_of_a_decoy_stays_worthless_when_the_address_gets_an_account(self, world: AuthWorld) -> None:
        challenge = await world.start_code(ADA)
        code = await world.code(challenge)
        await world.register(ADA)
        await refused(world.complete_code(challenge, code))


class TestFloods:
    async def test_a_stranger_who_asks_for_codes_leaves_the_owners_code_and_its_attempts_alone(
        self, world: AuthWorld, ada: Member
    ) -> None:
        own = await world.start_code(ADA)
        for _ in range(4):
            world.clock.advance(minutes=1)
            strangers = await world.start_code(ADA)
            for _ in range(10):
                await refused(world.complete_code(strangers, wrong(await world.code(strangers))))
        await refused(world.complete_code(await world.start_code(ADA), wrong(await world.code(own))))
        assert (await world.complete_code(own, await world.code(own))).user == ada.user

    async def test_wrong_codes_are_limited_by_the_day_across_challenges(self, make_world: MakeWorld) -> None:
        world = await make_world(code_cooldown_seconds=0, code_attempts_a_day=7)
        await world.register(ADA)
        for _ in range(2):
            challenge = await world.start_code(ADA)
            for _ in range(5):
                await refused(world.complete_code(challenge, wrong(await world.code(challenge))))
        last = await world.start_code(ADA)
        await refused(world.complete_code(last, await world.code(last)))
        # Every purpose has a budget of its own.
        reset = await world.start_reset(ADA)
        await world.complete_reset(reset, await world.code(reset), NEW_PASSWORD)
        world.clock.advance(days=1)
        next_day = await world.start_code(ADA)
        assert await world.complete_code(next_day, await world.code(next_day))


class TestFailures:
    async def test_a_code_survives_a_database_that_goes_down_while_it_is_redeemed(
        self, world: AuthWorld, ada: Member
    ) -> None:
        challenge = await world.start_code(ADA)
        code = await world.code(challenge)
        async with world.database_lost_on_writing("sessions"):
            for _ in range(6):
                with raises_status(StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE"):
                    await world.complete_code(challenge, code)
        assert await world.complete_code(challenge, code)

    async def test_a_call_that_is_given_up_in_the_middle_leaves_the_code_good(
        self, world: AuthWorld, ada: Member
    ) -> None:
        challenge = await world.start_code(ADA)
        request = pb.CompleteSessionCodeRequest(challenge_id=challenge, code=await world.code(challenge))
        async with world.db.transaction() as tx:
            await tx.exec_driver_sql("SELECT 1 FROM users FOR UPDATE")
            call = world.sessions.CompleteSessionCode(request)
            await until(world.waits_for_a_lock)
            call.cancel()
            await until(lambda: claim_is_gone(world, challenge))
        assert await world.sessions.CompleteSessionCode(request)

    async def test_wrong_codes_count_although_the_connection_breaks_before_the_answer(
        self, world: AuthWorld, ada: Member
    ) -> None:
        challenge = await world.start_code(ADA)
        code = await world.code(challenge)
        (key,) = await world.redis.keys(f"codes:*:{challenge}")
        request = pb.CompleteSessionCodeRequest(challenge_id=challenge, code=wrong(code))
        for attempts in range(1, 6):
            async with world.db.transaction() as tx:
                # Blocks the audit entry of the refusal, and so the answer.
                await tx.exec_driver_sql("LOCK TABLE audit_entries")
                call = world.sessions.CompleteSessionCode(request)
                await until(world.waits_for_a_lock)
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)
            assert int(await world.redis.hget(key, "attempts") or 0) == attempts
        await refused(world.complete_code(challenge, code))

    async def test_nobody_is_mailed_a_code_while_redis_or_the_database_cannot_keep_it(
        self, world: AuthWorld, ada: Member
    ) -> None:
        before = await world.published()
        async with world.database_lost_on_writing("challenges"):
            with raises_status(StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE"):
                await world.start_code(ADA)
        assert await world.published() == before

    @pytest.mark.parametrize("start", ["start_code", "start_reset"])
    async def test_asking_for_a_code_while_the_account_is_deleted_is_answered_as_for_an_unknown_address(
        self, world: AuthWorld, ada: Member, start: str
    ) -> None:
        async with world.db.transaction() as tx:
            await tx.exec_driver_sql("DELETE FROM users")
            asking = asyncio.create_task(getattr(world, start)(ADA))
            await until(world.waits_for_a_lock)
        challenge = await asking
        assert [mail.email for mail in await world.mails(challenge)] == [""]


async def claim_is_gone(world: AuthWorld, challenge_id: str) -> bool:
    (key,) = await world.redis.keys(f"codes:*:{challenge_id}")
    return not await world.redis.hexists(key, "claim")


class TestDisabledPasswords:
    async def test_a_code_makes_a_disabled_password_usable_and_ends_the_throttle_of_all_logins(
        self, make_world: MakeWorld
    ) -> None:
        world = await make_world(sign_in_most_failures=6)
        await world.register(ADA, username="ada")
        for login, times in ((ADA, 5), ("ada", 5)):
            for _ in range(times):
                with raises_status(StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"):
                    await world.sign_in(login, "not the right password")
        for login in (ADA, "ada"):
            with raises_status(StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_SIGN_INS"):
                await world.sign_in(login)
        assert await world.scalar("SELECT password_disabled_at IS NOT NULL FROM users")
        challenge = await world.start_code(ADA)
        await world.complete_code(challenge, await world.code(challenge))
        assert await world.sign_in(ADA)
        assert await world.sign_in("ada")
        for _ in range(5):
            with raises_status(StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"):
                await world.sign_in(ADA, "not the right password")
        assert await world.scalar("SELECT password_disabled_at IS NULL FROM users")
