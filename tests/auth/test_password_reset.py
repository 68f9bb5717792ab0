"""Password resets."""

from __future__ import annotations

from datetime import timedelta

import pytest
from grpc import StatusCode
from storymesh.auth.v1 import account_service_pb2 as pb
from storymesh.events.v1 import auth_events_pb2 as events

from tests.auth.conftest import PASSWORD, AuthWorld, MakeWorld, Member, outcomes, wrong
from tests.auth.test_password_change import NEW, NEWER, violation
from tests.statuses import raises_status

pytestmark = pytest.mark.slow

ADA = "ada@example.org"


@pytest.fixture
async def ada(world: AuthWorld) -> Member:
    return await world.register(ADA, username="countess")


async def test_a_mailed_code_replaces_the_password(world: AuthWorld, ada: Member) -> None:
    request = pb.StartPasswordResetRequest(email=ADA.upper())
    started = await world.accounts.StartPasswordReset(request)
    assert started.code_expire_time.ToDatetime(world.clock().tzinfo) == world.clock() + timedelta(minutes=10)
    (mail,) = await world.mails(started.challenge_id)
    assert (mail.email, len(mail.code)) == (ADA, 8)
    assert (await world.told(events.CodeIssued))[-1].purpose == events.CODE_PURPOSE_PASSWORD_RESET
    await world.complete_reset(started.challenge_id, mail.code, NEW)
    with raises_status(StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"):
        await world.sign_in(ADA)
    assert await world.sign_in(ADA, NEW)
    (event,) = await world.told(events.PasswordChanged)
    assert (event.user_id, event.reset) == (ada.user.id, True)


async def test_every_session_ends_and_nobody_is_signed_in(world: AuthWorld, ada: Member) -> None:
    members = [ada, await world.sign_in(ADA)]
    challenge = await world.start_reset(ADA)
    await world.complete_reset(challenge, await world.code(challenge), NEW)
    assert await world.scalar("SELECT count(*) FROM sessions WHERE revoked_at IS NULL") == 0
    for member in members:
        for call in (world.account(member), world.refresh(member.tokens.refresh_token)):
            with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
                await call


async def test_a_reset_makes_a_disabled_password_usable(make_world: MakeWorld) -> None:
    world = await make_world(sign_in_most_failures=5)
    await world.register(ADA)
    for _ in range(5):
        with raises_status(StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"):
            await world.sign_in(ADA, "not the right password")
    challenge = await world.start_reset(ADA)
    await world.complete_reset(challenge, await world.code(challenge), NEW)
    assert await world.sign_in(ADA, NEW)


async def test_a_code_works_once_also_when_redis_forgets_that_it_was_used(world: AuthWorld, ada: Member) -> None:
    challenge = await world.start_reset(ADA)
    code = await world.code(challenge)
    async with world.forgotten_by_redis(challenge):
        await world.complete_reset(challenge, code, NEW)
    with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
        await world.complete_reset(challenge, code, NEWER)


async def test_of_simultaneous_resets_with_one_code_one_wins(world: AuthWorld, ada: Member) -> None:
    challenge = await world.start_reset(ADA)
    code = await world.code(challenge)
    reasons = await outcomes(
        *(world.complete_reset(challenge, code, f"the phrase of device number {each}") for each in range(4))
    )
    assert reasons == {"": 1, "CODE_INVALID": 3}


@pytest.mark.parametrize(
    ("password", "reason"),
    [
        ("short", "PASSWORD_TOO_SHORT"),
        ("correct horse\0battery staple", "PASSWORD_UNPRINTABLE"),
        ("passwordpassword", "PASSWORD_COMMON"),
        ("letmeinletmein123", "PASSWORD_GUESSABLE"),
        ("Countess of Storymesh", "PASSWORD_CONTEXT"),
        ("x" * 1025, "STRING_MAX_BYTES"),
        ("x" * 900_000, "STRING_MAX_BYTES"),
    ],
)
async def test_a_password_that_is_refused_leaves_the_code_good(
    world: AuthWorld, ada: Member, password: str, reason: str
) -> None:
    challenge = await world.start_reset(ADA)
    code = await world.code(challenge)
    for _ in range(6):
        assert await violation(world.complete_reset(challenge, code, password)) == ("new_password", reason)
    await world.complete_reset(challenge, code, NEW)


async def test_the_words_of_an_account_are_told_only_to_who_has_the_code(world: AuthWorld, ada: Member) -> None:
    challenge = await world.start_reset(ADA)
    with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
        await world.complete_reset(challenge, wrong(await world.code(challenge)), "Countess of Storymesh")


async def test_the_former_password_may_be_set_again(world: AuthWorld, ada: Member) -> None:
    """A person who resets has proven the address, not the password: a refusal would tell the former password."""
    challenge = await world.start_reset(ADA)
    await world.complete_reset(challenge, await world.code(challenge), PASSWORD)
    assert await world.sign_in(ADA)


@pytest.mark.parametrize("table", ["outbox", "audit_entries", "revocations"])
async def test_a_reset_that_cannot_be_recorded_whole_did_not_happen_and_the_code_stays_good(
    world: AuthWorld, ada: Member, table: str
) -> None:
    challenge = await world.start_reset(ADA)
    code = await world.code(challenge)
    audited, published = await world.audited(), await world.published()
    async with world.refused_by(table):
        with raises_status(StatusCode.INTERNAL, "INTERNAL"):
            await world.complete_reset(challenge, code, NEW)
    assert (await world.audited(), await world.published()) == (audited, published)
    assert await world.account(ada)
    assert await world.sign_in(ADA)
    await world.complete_reset(challenge, code, NEW)


async def test_an_unknown_address_gets_the_same_answer_and_nothing_is_mailed(world: AuthWorld) -> None:
    challenge = await world.start_reset("nobody@example.org")
    (mail,) = await world.mails(challenge)
    assert mail.email == ""
    with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
        await world.complete_reset(challenge, mail.code, NEW)
