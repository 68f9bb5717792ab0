"""Email changes."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from grpc import StatusCode
from storymesh.auth.v1 import account_service_pb2 as pb
from storymesh.events.v1 import auth_events_pb2 as events

from kit.identity.sealing import Seal
from tests.auth.conftest import PASSWORD, SEAL_KEY, AuthWorld, MakeWorld, Member, outcomes, wrong
from tests.auth.test_password_change import NEW, WRONG, violation
from tests.statuses import raises_status
from tests.waiting import until

pytestmark = pytest.mark.slow

ADA, BOB = "ada@example.org", "bob@example.org"
COUNTESS = "countess@example.org"


@pytest.fixture
async def ada(world: AuthWorld) -> Member:
    return await world.register(ADA, username="ada")


async def refused(call: Any) -> None:
    with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
        await call


async def test_a_code_to_the_new_address_moves_the_account_there(world: AuthWorld, ada: Member) -> None:
    request = pb.StartEmailChangeRequest(new_email="Countess@Example.org", password=PASSWORD)
    started = await world.accounts.StartEmailChange(request, metadata=ada.auth)
    assert started.code_expire_time.ToDatetime(world.clock().tzinfo) == world.clock() + timedelta(minutes=10)
    (mail,) = await world.mails(started.challenge_id)
    assert (mail.email, len(mail.code)) == ("Countess@Example.org", 8)
    assert (await world.told(events.CodeIssued))[-1].purpose == events.CODE_PURPOSE_EMAIL_CHANGE
    assert (await world.account(ada)).email == ADA
    user = await world.complete_email_change(ada, started.challenge_id, mail.code)
    assert (user.id, user.email, user.username) == (ada.user.id, "Countess@Example.org", "ada")
    assert await world.account(ada) == user
    assert (await world.sign_in(COUNTESS)).user == user
    with raises_status(StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"):
        await world.sign_in(ADA)


async def test_the_old_address_is_told_in_an_event_that_shows_neither_address(world: AuthWorld, ada: Member) -> None:
    challenge = await world.start_email_change(ada, COUNTESS)
    await world.complete_email_change(ada, challenge, await world.code(challenge))
    (event,) = await world.told(events.EmailChanged)
    mail = events.AddressMail.FromString(Seal(SEAL_KEY).unseal("storymesh.events.v1.AddressMail", event.sealed_mail))
    assert (event.user_id, mail.email) == (ada.user.id, ADA)
    assert [each.user_id for each in await world.told(events.UserUpdated)] == [ada.user.id]
    payloads = b"".join(payload for _, payload in await world.published())
    assert b"example.org" not in payloads


async def test_a_code_works_once_also_when_redis_forgets_that_it_was_used(world: AuthWorld, ada: Member) -> None:
    challenge = await world.start_email_change(ada, COUNTESS)
    code = await world.code(challenge)
    async with world.forgotten_by_redis(challenge):
        await world.complete_email_change(ada, challenge, code)
    await refused(world.complete_email_change(ada, challenge, code))
    assert len(await world.told(events.EmailChanged)) == 1


async def test_five_wrong_codes_void_the_right_one(world: AuthWorld, ada: Member) -> None:
    challenge = await world.start_email_change(ada, COUNTESS)
    code = await world.code(challenge)
    for _ in range(5):
        await refused(world.complete_email_change(ada, challenge, wrong(code)))
    await refused(world.complete_email_change(ada, challenge, code))


async def test_a_strangers_challenge_is_refused_and_stays_its_owners(world: AuthWorld, ada: Member) -> None:
    bob = await world.register(BOB)
    challenge = await world.start_email_change(ada, COUNTESS)
    code = await world.code(challenge)
    for _ in range(6):
        await refused(world.complete_email_change(bob, challenge, code))
    assert (await world.complete_email_change(ada, challenge, code)).email == COUNTESS
    assert (await world.account(bob)).email == BOB


async def test_starting_needs_the_password_and_is_slowed_down_like_any_guess(world: AuthWorld, ada: Member) -> None:
    before = await world.published()
    for _ in range(5):
        with raises_status(StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"):
            await world.start_email_change(ada, COUNTESS, WRONG)
    with raises_status(StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_SIGN_INS"):
        await world.start_email_change(ada, COUNTESS)
    assert await world.published() == before


@pytest.mark.parametrize(
    ("registered", "asked"),
    [
        (ADA, "ADA@EXAMPLE.ORG"),
        ("ada@xn--bcher-kva.example", "ada@xn--BCHER-kva.example"),
        ("Ada@example.org", "ada@example.org"),
    ],
)
async def test_the_same_address_in_other_letters_is_no_change(world: AuthWorld, registered: str, asked: str) -> None:
    ada = await world.register(registered)
    assert await violation(world.start_email_change(ada, asked)) == ("new_email", "EMAIL_UNCHANGED")


@pytest.mark.parametrize("email", ["ada+stories@example.org", "a.da@example.org", "ada@example.com"])
async def test_tags_dots_and_domains_make_other_addresses(world: AuthWorld, ada: Member, email: str) -> None:
    challenge = await world.start_email_change(ada, email)
    assert (await world.complete_email_change(ada, challenge, await world.code(challenge))).email == email
    world.clock.advance(minutes=1)
    assert await world.register(ADA)


async def test_a_look_alike_is_no_address(world: AuthWorld, ada: Member) -> None:
    call = world.start_email_change(ada, "\N{CYRILLIC SMALL LETTER A}da@example.org")
    assert await violation(call) == ("new_email", "STRING_EMAIL")


async def test_codes_to_the_new_address_are_rationed_like_all(world: AuthWorld, ada: Member) -> None:
    challenges = []
    for address in (COUNTESS, COUNTESS.upper(), COUNTESS):
        challenges.append(await world.start_email_change(ada, address))
        world.clock.advance(seconds=10)
    assert [len(await world.mails(each)) for each in challenges] == [1, 0, 1]
    for _ in range(3):
        world.clock.advance(minutes=1)
        await world.start_email_change(ada, COUNTESS)
    world.clock.advance(minutes=10)
    ada = await world.sign_in(ADA)
    with raises_status(StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CODES"):
        await world.start_email_change(ada, COUNTESS)
    await world.start_email_change(ada, "lovelace@example.org")


class TestTakenAddresses:
    async def test_the_owner_is_told_and_the_caller_learns_nothing(self, world: AuthWorld, ada: Member) -> None:
        bob = await world.register(BOB)
        answers = []
        for email in (BOB, "free@example.org"):
            request = pb.StartEmailChangeRequest(new_email=email, password=PASSWORD)
            call = world.accounts.StartEmailChange(request, metadata=ada.auth)
            response = await call
            assert len(response.challenge_id) == 36
            response.challenge_id = ""
            answers.append((response, str(await call.initial_metadata()), str(await call.trailing_metadata())))
        assert answers[0] == answers[1]
        assert [event.user_id for event in await world.told(events.AddressClaimed)] == [bob.user.id]

    async def test_no_code_is_mailed_and_none_works(self, world: AuthWorld, ada: Member) -> None:
        await world.register(BOB)
        challenge = await world.start_email_change(ada, BOB)
        assert await world.mails(challenge) == []
        for number in range(6):
            await refused(world.complete_email_change(ada, challenge, f"{number:08}"))
        assert (await world.account(ada)).email == ADA

    async def test_of_two_accounts_that_move_to_one_address_at_the_same_time_one_gets_it(
        self, make_world: MakeWorld
    ) -> None:
        world = await make_world(code_cooldown_seconds=0)
        members = [await world.register(f"person{number}@example.org") for number in range(3)]
        challenges = [await world.start_email_change(member, COUNTESS) for member in members]
        codes = [await world.code(challenge) for challenge in challenges]
        reasons = await outcomes(*map(world.complete_email_change, members, challenges, codes))
        assert reasons == {"": 1, "EMAIL_TAKEN": 2}
        assert await world.scalar("SELECT count(*) FROM users WHERE email = :email", email=COUNTESS) == 1
        # A refused attempt publishes nothing.
        assert len(await world.told(events.EmailChanged)) == 1

    async def test_an_address_that_somebody_registered_meanwhile_is_taken(self, world: AuthWorld, ada: Member) -> None:
        challenge = await world.start_email_change(ada, BOB)
        bob = await world.register(BOB)
        with raises_status(StatusCode.ALREADY_EXISTS, "EMAIL_TAKEN"):
            await world.complete_email_change(ada, challenge, await world.code(challenge))
        assert (await world.sign_in(BOB)).user == bob.user

    async def test_registrations_of_the_address_end_when_an_account_moves_there(
        self, world: AuthWorld, ada: Member
    ) -> None:
        registration = await world.start(COUNTESS)
        challenge = await world.start_email_change(ada, COUNTESS)
        await world.complete_email_change(ada, challenge, await world.code(challenge))
        await refused(world.complete(registration, await world.code(registration)))
        assert await world.scalar("SELECT count(*) FROM registrations") == 0


class TestEndedSessions:
    async def test_a_session_that_has_ended_starts_and_completes_nothing(self, world: AuthWorld, ada: Member) -> None:
        challenge = await world.start_email_change(ada, COUNTESS)
        code = await world.code(challenge)
        await world.execute("UPDATE sessions SET revoked_at = created_at, revoke_reason = 'REVOKED'")
        for call in (
            world.start_email_change(ada, "lovelace@example.org"),
            world.complete_email_change(ada, challenge, code),
        ):
            with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
                await call
        assert (await world.complete_email_change(await world.sign_in(ADA), challenge, code)).email == COUNTESS

    async def test_whoever_knew_the_password_before_a_reset_cannot_complete_what_they_started(
        self, world: AuthWorld, ada: Member
    ) -> None:
        thief = await world.sign_in(ADA)
        challenge = await world.start_email_change(thief, "thief@example.org")
        reset = await world.start_reset(ADA)
        await world.complete_reset(reset, await world.code(reset), NEW)
        with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
            await world.complete_email_change(thief, challenge, await world.code(challenge))

    async def test_starting_while_the_account_is_deleted_is_refused_as_by_an_ended_session(
        self, world: AuthWorld, ada: Member
    ) -> None:
        async with world.db.transaction() as tx:
            await tx.exec_driver_sql("DELETE FROM users")
            starting = asyncio.create_task(world.start_email_change(ada, COUNTESS))
            await until(world.waits_for_a_lock)
        with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
            await starting


@pytest.mark.parametrize("table", ["outbox", "audit_entries"])
async def test_a_change_that_cannot_be_recorded_whole_did_not_happen_and_the_code_stays_good(
    world: AuthWorld, ada: Member, table: str
) -> None:
    challenge = await world.start_email_change(ada, COUNTESS)
    code = await world.code(challenge)
    audited, published = await world.audited(), await world.published()
    async with world.refused_by(table):
        with raises_status(StatusCode.INTERNAL, "INTERNAL"):
            await world.complete_email_change(ada, challenge, code)
    assert (await world.audited(), await world.published()) == (audited, published)
    assert (await world.account(ada)).email == ADA
    assert (await world.complete_email_change(ada, challenge, code)).email == COUNTESS
