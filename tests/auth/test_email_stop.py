"""The owner of an account's former address stops an email change, before and after it is completed."""

from __future__ import annotations

from datetime import UTC, timedelta

import pytest
from grpc import StatusCode
from storymesh.auth.v1 import account_service_pb2 as pb
from storymesh.events.v1 import auth_events_pb2 as events

from kit.identity.sealing import Seal
from services.auth.worker import Upkeep
from tests.auth.conftest import PASSWORD, SEAL_KEY, AuthWorld, Member, outcomes
from tests.statuses import raises_status
from tests.waiting import until

pytestmark = pytest.mark.slow

ADA, BOB, THIEF = "ada@example.org", "bob@example.org", "thief@example.org"


@pytest.fixture
async def ada(world: AuthWorld) -> Member:
    return await world.register(ADA, username="ada")


async def begin(world: AuthWorld, member: Member, email: str = THIEF) -> str:
    """Begin a change ten minutes after the one before, so that it is mailed, and return its challenge."""
    world.clock.advance(minutes=11)
    member.tokens = await world.refresh(member.tokens.refresh_token)
    return await world.start_email_change(member, email)


async def move(world: AuthWorld, member: Member, email: str = THIEF) -> None:
    challenge = await begin(world, member, email)
    await world.complete_email_change(member, challenge, await world.code(challenge))


async def mailed(world: AuthWorld) -> list[events.EmailChangeMail]:
    seal = Seal(SEAL_KEY)
    kind = events.EmailChangeMail.DESCRIPTOR.full_name
    return [
        events.EmailChangeMail.FromString(seal.unseal(kind, event.sealed_mail))
        for event in await world.told(events.EmailChangeBegun)
    ]


async def stop(world: AuthWorld, token: str) -> None:
    await world.accounts.StopEmailChange(pb.StopEmailChangeRequest(stop_token=token))


async def refused(world: AuthWorld, token: str) -> None:
    with raises_status(StatusCode.UNAUTHENTICATED, "STOP_TOKEN_INVALID"):
        await stop(world, token)


async def address(world: AuthWorld, member: Member) -> object:
    return await world.scalar("SELECT email FROM users WHERE id = :id", id=member.user.id)


async def sign_in_by_code(world: AuthWorld, email: str) -> Member:
    challenge = await world.start_code(email)
    return await world.complete_code(challenge, await world.code(challenge))


class TestMail:
    async def test_the_address_that_the_account_has_is_told_and_nothing_on_the_way_shows_how_to_stop_it(
        self, world: AuthWorld, ada: Member
    ) -> None:
        await begin(world, ada)
        (mail,) = await mailed(world)
        (event,) = await world.told(events.EmailChangeBegun)
        assert (event.user_id, mail.email) == (ada.user.id, ADA)
        assert event.stop_expire_time.ToDatetime(UTC) == world.clock() + timedelta(days=7)
        secret = mail.stop_token.removeprefix("sms1_")
        assert len(secret) == 43
        payloads = b"".join(payload for _, payload in await world.published())
        assert secret.encode() not in payloads
        assert b"example.org" not in payloads
        stored = str(await world.scalar("SELECT string_agg(s::text, ' ') FROM email_change_stops s"))
        assert secret not in stored

    async def test_it_is_told_as_well_when_the_new_address_has_an_account(self, world: AuthWorld, ada: Member) -> None:
        """Otherwise the mail would tell which addresses have an account."""
        await world.register(BOB)
        await begin(world, ada, BOB)
        assert [mail.email for mail in await mailed(world)] == [ADA]

    async def test_it_is_not_told_of_a_change_that_was_refused(self, world: AuthWorld, ada: Member) -> None:
        with raises_status(StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"):
            await world.start_email_change(ada, THIEF, "a wrong password indeed")
        assert await mailed(world) == []

    async def test_who_begins_again_and_again_floods_no_mailbox(self, world: AuthWorld, ada: Member) -> None:
        for number in range(3):
            await world.start_email_change(ada, f"thief{number}@example.org")
        (mail,) = await mailed(world)
        await stop(world, mail.stop_token)


class TestStop:
    async def test_a_change_that_is_begun_comes_to_nothing(self, world: AuthWorld, ada: Member) -> None:
        challenge = await begin(world, ada)
        code = await world.code(challenge)
        thief = await world.sign_in(ADA)
        await stop(world, (await mailed(world))[0].stop_token)
        for member in (ada, thief):
            with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
                await world.refresh(member.tokens.refresh_token)
            with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
                await world.complete_email_change(member, challenge, code)
        with raises_status(StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"):
            await world.sign_in(ADA)
        back = await sign_in_by_code(world, ADA)
        assert back.user.id == ada.user.id
        with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
            await world.complete_email_change(back, challenge, code)
        assert await address(world, ada) == ADA
        assert await world.told(events.EmailChanged) == []
        assert len(await world.told(events.EmailChangeStopped)) == 1
        # The password, which a thief may know, stays removed after a sign-in by a code.
        with raises_status(StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"):
            await world.sign_in(ADA)

    async def test_a_completed_change_is_undone_and_the_address_that_loses_is_told(
        self, world: AuthWorld, ada: Member
    ) -> None:
        await move(world, ada)
        world.clock.advance(days=6)
        await stop(world, (await mailed(world))[0].stop_token)
        assert await address(world, ada) == ADA
        with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
            await world.refresh(ada.tokens.refresh_token)
        told = await world.told(events.EmailChanged)
        seal = Seal(SEAL_KEY)
        kind = events.AddressMail.DESCRIPTOR.full_name
        losers = [events.AddressMail.FromString(seal.unseal(kind, event.sealed_mail)).email for event in told]
        assert losers == [ADA, THIEF]
        assert (await sign_in_by_code(world, ADA)).user.id == ada.user.id
        assert ("EMAIL_CHANGE_STOP", "") in await world.audited()
        (ended,) = await world.told(events.SessionsRevoked)
        assert ended.reason == events.SESSION_REVOKE_REASON_EMAIL_CHANGE_STOPPED

    async def test_what_the_thief_was_mailed_since_brings_nothing_back(self, world: AuthWorld, ada: Member) -> None:
        await move(world, ada)
        await move(world, ada, "thief2@example.org")
        first, second = [mail.stop_token for mail in await mailed(world)]
        reset = await world.start_reset("thief2@example.org")
        code = await world.code(reset)
        await stop(world, first)
        assert await address(world, ada) == ADA
        await refused(world, second)
        with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
            await world.complete_reset(reset, code, "another horse battery staple")

    async def test_the_later_token_leaves_the_earlier_one(self, world: AuthWorld, ada: Member) -> None:
        await move(world, ada)
        await move(world, ada, "thief2@example.org")
        first, second = [mail.stop_token for mail in await mailed(world)]
        await stop(world, second)
        assert await address(world, ada) == THIEF
        await stop(world, first)
        assert await address(world, ada) == ADA

    async def test_a_token_works_once_also_when_it_comes_many_times_at_once(
        self, world: AuthWorld, ada: Member
    ) -> None:
        await move(world, ada)
        token = (await mailed(world))[0].stop_token
        assert await outcomes(*(stop(world, token) for _ in range(10))) == {"": 1, "STOP_TOKEN_INVALID": 9}
        assert len(await world.told(events.EmailChangeStopped)) == 1

    async def test_a_token_may_be_pasted_with_blanks_around(self, world: AuthWorld, ada: Member) -> None:
        await move(world, ada)
        await stop(world, f" {(await mailed(world))[0].stop_token}\r\n")
        assert await address(world, ada) == ADA

    async def test_it_works_for_seven_days_and_is_removed_then(self, world: AuthWorld, ada: Member) -> None:
        await move(world, ada)
        token = (await mailed(world))[0].stop_token
        world.clock.advance(days=7)
        await refused(world, token)
        await Upkeep(
            world.db, world.ops.key_rotation, world.clock, every_seconds=60, audit_kept=timedelta(days=365)
        ).clean_up()
        assert await world.scalar("SELECT count(*) FROM email_change_stops") == 0

    async def test_what_is_no_token_stops_nothing_and_fills_no_log(self, world: AuthWorld, ada: Member) -> None:
        await move(world, ada)
        token = (await mailed(world))[0].stop_token
        audited = await world.audited()
        for wrong in ("garbage", token[:-1], token + "A", token.removeprefix("sms1_"), "sms1_", ada.device_token):
            await refused(world, wrong)
        assert await world.audited() == audited
        assert await address(world, ada) == THIEF

    async def test_an_address_that_got_another_account_is_not_taken_from_it_and_the_token_stays_good(
        self, world: AuthWorld, ada: Member
    ) -> None:
        await move(world, ada)
        token = (await mailed(world))[0].stop_token
        again = await world.register(ADA)
        with raises_status(StatusCode.ALREADY_EXISTS, "EMAIL_TAKEN"):
            await stop(world, token)
        assert await world.account(ada)
        await world.delete_account(again, password=PASSWORD)
        await stop(world, token)
        assert await address(world, ada) == ADA

    async def test_its_access_tokens_are_refused_at_every_door_soon(self, world: AuthWorld, ada: Member) -> None:
        await move(world, ada)
        await stop(world, (await mailed(world))[0].stop_token)
        await until(lambda: world.ops.revocations.count)
        with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
            await world.log_out(ada)

    async def test_with_the_account_the_tokens_go(self, world: AuthWorld, ada: Member) -> None:
        await begin(world, ada)
        token = (await mailed(world))[0].stop_token
        await world.delete_account(ada, password=PASSWORD)
        assert await world.scalar("SELECT count(*) FROM email_change_stops") == 0
        await refused(world, token)

    @pytest.mark.parametrize("table", ["outbox", "audit_entries", "revocations"])
    async def test_a_stop_that_cannot_be_recorded_whole_did_not_happen(
        self, world: AuthWorld, ada: Member, table: str
    ) -> None:
        await move(world, ada)
        token = (await mailed(world))[0].stop_token
        async with world.refused_by(table):
            with raises_status(StatusCode.INTERNAL, "INTERNAL"):
                await stop(world, token)
        assert await address(world, ada) == THIEF
        await stop(world, token)
        assert await address(world, ada) == ADA
