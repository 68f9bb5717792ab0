"""Listing and ending a person's sessions on several devices."""

from __future__ import annotations

from datetime import UTC
from uuid import UUID, uuid4

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError
from storymesh.auth.v1 import session_service_pb2 as pb
from storymesh.auth.v1.session_pb2 import Session
from storymesh.events.v1 import auth_events_pb2 as events

from tests.auth.conftest import PASSWORD, AuthWorld, Member, outcomes
from tests.statuses import raises_status, violated_fields
from tests.waiting import until

pytestmark = pytest.mark.slow

ADA, BOB = "ada@example.org", "bob@example.org"
PHONE = (("x-storymesh-client-address", "198.51.100.7"), ("x-user-agent", "Reader/1.0"))


@pytest.fixture
async def ada(world: AuthWorld) -> Member:
    return await world.register(ADA)


async def page(world: AuthWorld, member: Member, size: int = 0, token: str = "") -> pb.ListSessionsResponse:
    request = pb.ListSessionsRequest(page_size=size, page_token=token)
    return await world.sessions.ListSessions(request, metadata=member.auth)


async def listed(world: AuthWorld, member: Member) -> list[Session]:
    return list((await page(world, member)).sessions)


async def revoke(world: AuthWorld, member: Member, session_id: UUID | str) -> None:
    request = pb.RevokeSessionRequest(session_id=str(session_id))
    await world.sessions.RevokeSession(request, metadata=member.auth)


async def revoke_others(world: AuthWorld, member: Member) -> int:
    response = await world.sessions.RevokeOtherSessions(pb.RevokeOtherSessionsRequest(), metadata=member.auth)
    return response.revoked_count


async def writes(world: AuthWorld) -> object:
    return await world.scalar("SELECT string_agg(xmin::text || ctid::text, ',' ORDER BY id) FROM sessions")


class TestList:
    async def test_a_session_is_shown_with_its_device_and_its_times(self, world: AuthWorld, ada: Member) -> None:
        world.clock.advance(minutes=1)
        signed_in_at = world.clock()
        request = pb.CreateSessionRequest(login=ADA, password=PASSWORD, device_name="Ada's phone")
        answer = await world.sessions.CreateSession(request, metadata=PHONE)
        phone, computer = await listed(world, ada)
        assert (phone.device_name, phone.user_agent, phone.ip) == ("Ada's phone", "Reader/1.0", "198.51.100.7")
        assert phone.create_time.ToDatetime(UTC) == phone.last_use_time.ToDatetime(UTC) == signed_in_at
        assert phone.expire_time == answer.tokens.refresh_token_expire_time
        assert [phone.current, computer.current] == [False, True]
        assert UUID(computer.id) == ada.session_id

    async def test_a_refresh_moves_the_time_the_address_and_the_agent_and_nothing_else_writes(
        self, world: AuthWorld, ada: Member
    ) -> None:
        (before,) = await listed(world, ada)
        world.clock.advance(minutes=5)
        written = await writes(world)
        for _ in range(3):
            await world.account(ada)
            await page(world, ada)
        assert await writes(world) == written
        request = pb.RefreshSessionRequest(refresh_token=ada.tokens.refresh_token)
        await world.sessions.RefreshSession(request, metadata=PHONE)
        (after,) = await listed(world, ada)
        assert after.last_use_time.ToDatetime(UTC) == world.clock()
        assert (after.user_agent, after.ip) == ("Reader/1.0", "198.51.100.7")
        assert after.create_time == before.create_time
        assert after.expire_time.ToDatetime() > before.expire_time.ToDatetime()

    async def test_only_living_sessions_of_the_caller_are_listed(self, world: AuthWorld, ada: Member) -> None:
        await world.register(BOB)
        revoked, expired = await world.sign_in(ADA), await world.sign_in(ADA)
        await world.log_out(revoked)
        await world.execute(
            "UPDATE sessions SET expires_at = :now WHERE id = :id", now=world.clock(), id=expired.session_id
        )
        assert [UUID(session.id) for session in await listed(world, ada)] == [ada.session_id]

    async def test_pages_hold_every_session_once_newest_first(self, world: AuthWorld, ada: Member) -> None:
        signed_in = [ada] + [await world.sign_in(ADA) for _ in range(6)]
        found: list[UUID] = []
        token, sizes = "", []
        while True:
            answer = await page(world, ada, size=3, token=token)
            sizes.append(len(answer.sessions))
            found += [UUID(session.id) for session in answer.sessions]
            token = answer.next_page_token
            if not token:
                break
            # A session that is opened later does not shift the next page.
            await world.sign_in(ADA)
        assert found == [member.session_id for member in reversed(signed_in)]
        assert sizes == [3, 3, 1]

    async def test_a_page_token_of_somebody_else_or_made_up_is_refused(self, world: AuthWorld, ada: Member) -> None:
        bob = await world.register(BOB)
        await world.sign_in(ADA)
        token = (await page(world, ada, size=1)).next_page_token
        for caller, foreign in ((bob, token), (ada, token + "x"), (ada, token[:-2]), (ada, "garbage"), (ada, "\0")):
            with pytest.raises(AioRpcError) as raised:
                await page(world, caller, size=1, token=foreign)
            assert raised.value.code() is StatusCode.INVALID_ARGUMENT
            assert violated_fields(raised.value) == ["page_token"]
        assert (await page(world, ada, size=1, token=token)).sessions


class TestRevoke:
    async def test_one_device_is_signed_out_and_no_other(self, world: AuthWorld, ada: Member) -> None:
        lost, kept = await world.sign_in(ADA), await world.sign_in(ADA)
        await revoke(world, ada, lost.session_id)
        for call in (world.account(lost), world.refresh(lost.tokens.refresh_token)):
            with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
                await call
        for member in (ada, kept):
            assert await world.account(member)
        (event,) = await world.told(events.SessionRevoked)
        assert (event.user_id, event.session_id) == (ada.user.id, str(lost.session_id))
        assert event.reason == events.SESSION_REVOKE_REASON_REVOKED

    async def test_a_strangers_session_and_one_that_never_was_look_alike(self, world: AuthWorld, ada: Member) -> None:
        bob = await world.register(BOB)
        answers = set()
        for session_id in (bob.session_id, uuid4()):
            with pytest.raises(AioRpcError) as raised:
                await revoke(world, ada, session_id)
            error = raised.value
            answers.add((error.code(), error.details(), str(error.trailing_metadata())))
        ((code, *_),) = answers
        assert code is StatusCode.NOT_FOUND
        assert await world.account(bob)

    async def test_revoking_again_changes_nothing(self, world: AuthWorld, ada: Member) -> None:
        other = await world.sign_in(ADA)
        await revoke(world, ada, other.session_id)
        written, told = await writes(world), await world.published()
        await revoke(world, ada, other.session_id)
        assert (await writes(world), await world.published()) == (written, told)

    async def test_a_device_can_sign_itself_out(self, world: AuthWorld, ada: Member) -> None:
        await revoke(world, ada, ada.session_id)
        with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
            await world.refresh(ada.tokens.refresh_token)

    async def test_a_session_that_has_ended_ends_no_other_even_before_the_list_of_revocations_says_so(
        self, world: AuthWorld, ada: Member
    ) -> None:
        thief = await world.sign_in(ADA)
        # Not announced yet, as before the feed delivers it.
        await world.execute(
            "UPDATE sessions SET revoked_at = created_at, revoke_reason = 'REVOKED' WHERE id = :id",
            id=thief.session_id,
        )
        for call in (revoke(world, thief, ada.session_id), revoke_others(world, thief)):
            with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
                await call
        assert await world.account(ada)


class TestRevokeOthers:
    async def test_all_devices_but_the_calling_one_are_signed_out(self, world: AuthWorld, ada: Member) -> None:
        bob = await world.register(BOB)
        others = [await world.sign_in(ADA) for _ in range(3)]
        assert await revoke_others(world, ada) == 3
        assert await revoke_others(world, ada) == 0
        assert [UUID(session.id) for session in await listed(world, ada)] == [ada.session_id]
        for other in others:
            with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
                await world.account(other)
        assert await world.account(bob)
        (event,) = await world.told(events.SessionsRevoked)
        assert (event.user_id, event.count) == (ada.user.id, len(others))
        assert event.reason == events.SESSION_REVOKE_REASON_REVOKED

    async def test_two_devices_that_sign_all_others_out_at_the_same_time_leave_one(
        self, world: AuthWorld, ada: Member
    ) -> None:
        for _ in range(15):
            first, second, _ = [await world.sign_in(ADA) for _ in range(3)]
            reasons = await outcomes(revoke_others(world, first), revoke_others(world, second))
            assert reasons == {"": 1, "SESSION_REVOKED": 1}
            assert await world.scalar("SELECT count(*) FROM sessions WHERE revoked_at IS NULL") == 1

    async def test_devices_that_sign_each_other_out_at_the_same_time_do_not_wait_for_each_other(
        self, world: AuthWorld, ada: Member
    ) -> None:
        for _ in range(15):
            first, second = await world.sign_in(ADA), await world.sign_in(ADA)
            reasons = await outcomes(
                revoke(world, first, second.session_id),
                revoke(world, second, first.session_id),
                revoke_others(world, first),
                world.refresh(second.tokens.refresh_token),
            )
            assert reasons.keys() <= {"", "SESSION_REVOKED", "REFRESH_REUSED"}
            ids = {"first": first.session_id, "second": second.session_id}
            living = await world.scalar(
                "SELECT count(*) FROM sessions WHERE revoked_at IS NULL AND id IN (:first, :second)", **ids
            )
            assert living in (0, 1)

    async def test_what_was_signed_out_is_refused_at_the_door_soon(self, world: AuthWorld, ada: Member) -> None:
        other = await world.sign_in(ADA)
        await revoke_others(world, ada)
        await until(lambda: world.ops.revocations.count)
        with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
            await page(world, other)
