"""Password changes by a person who knows the password."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.rpc.error_details_pb2 import BadRequest
from grpc import StatusCode
from grpc.aio import AioRpcError
from sqlalchemy import text
from storymesh.events.v1 import auth_events_pb2 as events

from tests.auth.conftest import PASSWORD, AuthWorld, MakeWorld, Member, outcomes
from tests.statuses import detail, raises_status, reason_of
from tests.waiting import until

pytestmark = pytest.mark.slow

ADA = "ada@example.org"
NEW, NEWER = "an entirely different phrase", "one more phrase, different again"
WRONG = "not the right password"


@pytest.fixture
async def ada(world: AuthWorld) -> Member:
    return await world.register(ADA, username="countess")


async def violation(call: Any) -> tuple[str, str]:
    """The field and the reason of the call's only violation."""
    with pytest.raises(AioRpcError) as raised:
        await call
    assert raised.value.code() is StatusCode.INVALID_ARGUMENT
    request = detail(raised.value, BadRequest)
    assert request
    (found,) = request.field_violations
    return found.field, found.reason


async def test_the_new_password_signs_in_and_the_old_one_does_not(world: AuthWorld, ada: Member) -> None:
    await world.change_password(ada, NEW)
    with raises_status(StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"):
        await world.sign_in(ADA)
    assert await world.sign_in(ADA, NEW)
    (event,) = await world.told(events.PasswordChanged)
    assert (event.user_id, event.reset) == (ada.user.id, False)


async def test_all_other_sessions_end_and_the_callers_goes_on(world: AuthWorld, ada: Member) -> None:
    others = [await world.sign_in(ADA) for _ in range(2)]
    bob = await world.register("bob@example.org")
    await world.change_password(ada, NEW)
    for other in others:
        for call in (world.account(other), world.refresh(other.tokens.refresh_token)):
            with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
                await call
    assert await world.account(ada)
    assert await world.refresh(ada.tokens.refresh_token)
    assert await world.account(bob)
    (revoked,) = await world.told(events.SessionsRevoked)
    assert (revoked.user_id, revoked.count) == (ada.user.id, len(others))
    assert revoked.reason == events.SESSION_REVOKE_REASON_PASSWORD_CHANGED


async def test_guessing_the_current_password_is_slowed_down_and_slows_no_sign_in(world: AuthWorld, ada: Member) -> None:
    for _ in range(5):
        with raises_status(StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"):
            await world.change_password(ada, NEW, current=WRONG)
    with raises_status(StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_SIGN_INS"):
        await world.change_password(ada, NEW)
    other = await world.sign_in(ADA)
    # Counted per account, not per session.
    with raises_status(StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_SIGN_INS"):
        await world.change_password(other, NEW)
    world.clock.advance(seconds=1)
    await world.change_password(ada, NEW)


async def test_a_reset_ends_what_was_counted_against_the_current_password(world: AuthWorld, ada: Member) -> None:
    for _ in range(5):
        with raises_status(StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"):
            await world.change_password(ada, NEW, current=WRONG)
    challenge = await world.start_reset(ADA)
    await world.complete_reset(challenge, await world.code(challenge), NEW)
    await world.change_password(await world.sign_in(ADA, NEW), NEWER, current=NEW)


async def test_a_disabled_password_cannot_be_changed(make_world: MakeWorld) -> None:
    world = await make_world(sign_in_most_failures=2)
    ada = await world.register(ADA)
    for _ in range(2):
        with raises_status(StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"):
            await world.change_password(ada, NEW, current=WRONG)
    with raises_status(StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"):
        await world.change_password(ada, NEW)
    assert len(await world.told(events.PasswordDisabled)) == 1


class TestPolicy:
    @pytest.mark.parametrize(
        ("password", "reason"),
        [
            ("short", "PASSWORD_TOO_SHORT"),
            ("correct horse\0battery staple", "PASSWORD_UNPRINTABLE"),
            ("passwordpassword", "PASSWORD_COMMON"),
            ("letmeinletmein123", "PASSWORD_GUESSABLE"),
            ("Countess@Storymesh", "PASSWORD_CONTEXT"),
            ("x" * 1025, "STRING_MAX_BYTES"),
            # 1,023 bytes, which become more by normalization.
            ("\N{DEVANAGARI LETTER QA}" * 341, "PASSWORD_TOO_LONG"),
            (PASSWORD, "PASSWORD_UNCHANGED"),
        ],
    )
    async def test_what_is_wrong_with_the_new_password_is_said_of_its_field(
        self, world: AuthWorld, ada: Member, password: str, reason: str
    ) -> None:
        assert await violation(world.change_password(ada, password)) == ("new_password", reason)
        assert await world.sign_in(ADA)

    async def test_the_policy_is_told_only_to_who_knows_the_current_password(
        self, world: AuthWorld, ada: Member
    ) -> None:
        """A refusal because the password repeats a name of the account tells that name."""
        with raises_status(StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"):
            await world.change_password(ada, "Countess@Storymesh", current=WRONG)

    async def test_the_same_password_in_another_unicode_form_is_no_other(self, world: AuthWorld) -> None:
        composed = "caf\N{LATIN SMALL LETTER E WITH ACUTE} owner of the year"
        decomposed = "cafe\N{COMBINING ACUTE ACCENT} owner of the year"
        ada = await world.register(ADA, password=composed)
        call = world.change_password(ada, decomposed, current=composed)
        assert await violation(call) == ("new_password", "PASSWORD_UNCHANGED")
        await world.change_password(ada, NEW, current=decomposed)
        await world.change_password(ada, decomposed, current=NEW)
        assert await world.sign_in(ADA, composed)

    async def test_emoji_and_spaces_are_kept_as_they_are(self, world: AuthWorld, ada: Member) -> None:
        password = "  ✨ żółw 🐢 über Ωmega  "
        await world.change_password(ada, password)
        assert await world.sign_in(ADA, password)
        with raises_status(StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"):
            await world.sign_in(ADA, password.strip())

    @pytest.mark.parametrize("field", ["current", "new"])
    async def test_a_megabyte_is_refused_before_anything_is_hashed_or_looked_up(
        self, world: AuthWorld, ada: Member, field: str
    ) -> None:
        await world.redis.config_resetstat()
        huge = {"current": PASSWORD, "new": NEW} | {field: "x" * (1 << 20)}
        with pytest.raises(AioRpcError) as raised:
            await world.change_password(ada, huge["new"], current=huge["current"])
        assert raised.value.code() in (StatusCode.INVALID_ARGUMENT, StatusCode.RESOURCE_EXHAUSTED)
        assert "cmdstat_evalsha" not in await world.redis.info("commandstats")


class TestOneTransaction:
    @pytest.mark.parametrize("table", ["outbox", "audit_entries", "revocations"])
    async def test_a_change_that_cannot_be_recorded_whole_did_not_happen(
        self, world: AuthWorld, ada: Member, table: str
    ) -> None:
        other = await world.sign_in(ADA)
        audited, published = await world.audited(), await world.published()
        async with world.refused_by(table):
            with raises_status(StatusCode.INTERNAL, "INTERNAL"):
                await world.change_password(ada, NEW)
        assert (await world.audited(), await world.published()) == (audited, published)
        assert await world.scalar("SELECT count(*) FROM revocations") == 0
        assert await world.account(other)
        assert await world.sign_in(ADA)


class TestRaces:
    """Each test starts a moment after the registration, because changes are told apart by their time."""

    async def test_of_simultaneous_changes_one_wins(self, world: AuthWorld, ada: Member) -> None:
        world.clock.advance(seconds=1)
        phrases = [f"the phrase of device number {number}" for number in range(4)]
        reasons = await outcomes(*(world.change_password(ada, phrase) for phrase in phrases))
        assert reasons == {"": 1, "INVALID_CREDENTIALS": 3}
        assert (await outcomes(*(world.sign_in(ADA, phrase) for phrase in phrases)))[""] == 1

    async def test_a_sign_in_with_the_old_password_does_not_outlive_the_change(
        self, world: AuthWorld, ada: Member
    ) -> None:
        for number in range(8):
            world.clock.advance(seconds=1)
            old, new = (PASSWORD if number == 0 else f"{NEW} {number}"), f"{NEW} {number + 1}"
            signing_in = [asyncio.create_task(world.sign_in(ADA, old)) for _ in range(3)]
            await world.change_password(ada, new, current=old)
            for outcome in await asyncio.gather(*signing_in, return_exceptions=True):
                if isinstance(outcome, Member):
                    with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
                        await world.account(outcome)
                else:
                    assert isinstance(outcome, AioRpcError)
                    assert reason_of(outcome) == "INVALID_CREDENTIALS"
            assert await world.scalar("SELECT count(*) FROM sessions WHERE revoked_at IS NULL") == 1

    async def test_refreshes_at_the_same_time_leave_no_other_living_session(
        self, world: AuthWorld, ada: Member
    ) -> None:
        other = await world.sign_in(ADA)

        async def refreshing() -> str:
            tokens = other.tokens
            while True:
                try:
                    tokens = await world.refresh(tokens.refresh_token)
                except AioRpcError as error:
                    return reason_of(error)

        racing = asyncio.create_task(refreshing())
        await until(lambda: world.scalar("SELECT max(generation) > 3 FROM sessions"))
        await world.change_password(ada, NEW)
        assert await racing == "SESSION_REVOKED"

    async def test_a_reset_that_comes_first_voids_the_change(self, world: AuthWorld, ada: Member) -> None:
        """A thief with the password and the device must not set a new password after the owner's reset."""
        world.clock.advance(seconds=1)
        challenge = await world.start_reset(ADA)
        code = await world.code(challenge)
        async with world.db.transaction() as tx:
            await tx.execute(text("SELECT 1 FROM users FOR UPDATE"))
            resetting = asyncio.create_task(world.complete_reset(challenge, code, NEW))
            await until(world.waits_for_a_lock)
            changing = asyncio.create_task(world.change_password(ada, NEWER))
            await until(
                lambda: world.scalar("SELECT count(*) = 2 FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            )
        await resetting
        with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
            await changing
        assert await world.sign_in(ADA, NEW)

    async def test_a_session_that_has_ended_changes_nothing_even_before_the_list_of_revocations_says_so(
        self, world: AuthWorld, ada: Member
    ) -> None:
        await world.execute("UPDATE sessions SET revoked_at = created_at, revoke_reason = 'REVOKED'")
        with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
            await world.change_password(ada, NEW)
        assert await world.sign_in(ADA)
