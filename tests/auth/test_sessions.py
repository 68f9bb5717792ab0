"""Refreshing a session and logging out."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from uuid import uuid4

import pytest
from google.rpc.error_details_pb2 import RetryInfo
from grpc import StatusCode
from grpc.aio import AioRpcError
from storymesh.auth.v1 import account_service_pb2, directory_service_pb2
from storymesh.auth.v1 import session_service_pb2 as pb
from storymesh.auth.v1.tokens_pb2 import Tokens
from storymesh.events.v1 import auth_events_pb2 as events

from kit.runtime import base64url
from services.auth import store
from services.auth.model import RevokeReason
from services.auth.model.refresh_tokens import RefreshTokens
from tests.auth.conftest import AuthWorld, MakeWorld, Member, session_id_of
from tests.identity import bearer, service_tokens
from tests.statuses import detail, raises_status, reason_of
from tests.waiting import until

ADA = "ada@example.org"


@pytest.fixture
async def member(world: AuthWorld) -> Member:
    return await world.register(ADA)


async def is_revoked(world: AuthWorld, tokens: Tokens) -> bool:
    query = "SELECT revoked_at IS NOT NULL FROM sessions WHERE id = :id"
    return bool(await world.scalar(query, id=session_id_of(tokens)))


class TestRefresh:
    async def test_a_refresh_token_is_exchanged_for_its_successor(self, world: AuthWorld, member: Member) -> None:
        seen = {member.tokens.refresh_token}
        tokens = member.tokens
        for _ in range(5):
            world.clock.advance(minutes=5)
            tokens = await world.refresh(tokens.refresh_token)
            assert tokens.refresh_token not in seen
            seen.add(tokens.refresh_token)
        assert session_id_of(tokens) == session_id_of(member.tokens)

    async def test_a_retry_after_a_lost_answer_gets_the_identical_successor(
        self, world: AuthWorld, member: Member
    ) -> None:
        lost = await world.refresh(member.tokens.refresh_token)
        world.clock.advance(seconds=5)
        repeated = await world.refresh(member.tokens.refresh_token)
        assert repeated.refresh_token == lost.refresh_token
        assert repeated.refresh_token_expire_time == lost.refresh_token_expire_time
        world.clock.advance(seconds=60)
        assert await world.refresh(repeated.refresh_token)

    @pytest.mark.parametrize("late", [{"seconds": 31}, {"minutes": 5}, {"days": 2}])
    async def test_a_late_retry_gets_the_identical_successor_while_nobody_has_used_it(
        self, world: AuthWorld, member: Member, late: dict[str, float]
    ) -> None:
        lost = await world.refresh(member.tokens.refresh_token)
        for _ in range(10):
            world.clock.advance(**late)
            assert (await world.refresh(member.tokens.refresh_token)).refresh_token == lost.refresh_token
        with raises_status(StatusCode.UNAUTHENTICATED, "REFRESH_REUSED"):
            await world.refresh(member.tokens.refresh_token)
        assert not await is_revoked(world, member.tokens)
        assert await world.told(events.SessionRevoked) == []
        assert await world.refresh(lost.refresh_token)

    async def test_a_late_retry_after_the_successor_was_used_ends_the_session(
        self, world: AuthWorld, member: Member
    ) -> None:
        lost = await world.refresh(member.tokens.refresh_token)
        world.clock.advance(minutes=5)
        await world.refresh(member.tokens.refresh_token)
        latest = await world.refresh(lost.refresh_token)
        with raises_status(StatusCode.UNAUTHENTICATED, "REFRESH_REUSED"):
            await world.refresh(member.tokens.refresh_token)
        with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
            await world.refresh(latest.refresh_token)
        (revoked,) = await world.told(events.SessionRevoked)
        assert revoked.reason == events.SESSION_REVOKE_REASON_REFRESH_REUSED

    async def test_a_thief_and_the_owner_who_take_turns_are_found_out(self, world: AuthWorld, member: Member) -> None:
        """Each presents the token that the other has spent, as after a lost answer."""
        shared = member.tokens.refresh_token
        for _ in range(3):
            successor = (await world.refresh(shared)).refresh_token
            world.clock.advance(minutes=10)
            assert (await world.refresh(shared)).refresh_token == successor
            shared = successor
        await world.refresh(shared)
        world.clock.advance(minutes=10)
        with raises_status(StatusCode.UNAUTHENTICATED, "REFRESH_REUSED"):
            await world.refresh(shared)
        assert await is_revoked(world, member.tokens)

    async def test_late_retries_that_are_not_in_a_row_are_borne_for_ever(
        self, world: AuthWorld, member: Member
    ) -> None:
        token = member.tokens.refresh_token
        for _ in range(5):
            for _ in range(3):
                successor = (await world.refresh(token)).refresh_token
                world.clock.advance(minutes=10)
                assert (await world.refresh(token)).refresh_token == successor
                token = successor
            token = (await world.refresh(token)).refresh_token
        assert not await is_revoked(world, member.tokens)

    @pytest.mark.slow
    async def test_a_session_that_is_refreshed_too_often_has_to_wait_and_no_other(
        self, world: AuthWorld, member: Member
    ) -> None:
        other = await world.sign_in(ADA)
        token = member.tokens.refresh_token
        for _ in range(100):
            token = (await world.refresh(token)).refresh_token
        with pytest.raises(AioRpcError) as raised:
            await world.refresh(token)
        assert (raised.value.code(), reason_of(raised.value)) == (StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_REFRESHES")
        advice = detail(raised.value, RetryInfo)
        assert advice
        assert advice.retry_delay.ToTimedelta() == timedelta(seconds=10)
        assert await world.refresh(other.tokens.refresh_token)
        world.clock.advance(seconds=10)
        token = (await world.refresh(token)).refresh_token
        with raises_status(StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_REFRESHES"):
            await world.refresh(token)
        world.clock.advance(seconds=1000)
        for _ in range(100):
            token = (await world.refresh(token)).refresh_token

    async def test_a_token_two_behind_ends_the_session_for_thief_and_owner(
        self, world: AuthWorld, member: Member
    ) -> None:
        second = await world.refresh(member.tokens.refresh_token)
        third = await world.refresh(second.refresh_token)
        with raises_status(StatusCode.UNAUTHENTICATED, "REFRESH_REUSED"):
            await world.refresh(member.tokens.refresh_token)
        for token in (member.tokens, second, third):
            with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
                await world.refresh(token.refresh_token)

    async def test_reuse_leaves_the_persons_other_sessions_alone(self, world: AuthWorld, member: Member) -> None:
        other = await world.sign_in(ADA)
        successor = await world.refresh(member.tokens.refresh_token)
        await world.refresh(successor.refresh_token)
        with raises_status(StatusCode.UNAUTHENTICATED, "REFRESH_REUSED"):
            await world.refresh(member.tokens.refresh_token)
        assert await world.refresh(other.tokens.refresh_token)

    async def test_the_successor_is_repeated_ten_times_at_most_and_the_session_lives_on(
        self, world: AuthWorld, member: Member
    ) -> None:
        successor = await world.refresh(member.tokens.refresh_token)
        for _ in range(10):
            assert (await world.refresh(member.tokens.refresh_token)).refresh_token == successor.refresh_token
        with raises_status(StatusCode.UNAUTHENTICATED, "REFRESH_REUSED"):
            await world.refresh(member.tokens.refresh_token)
        assert not await is_revoked(world, member.tokens)
        assert await world.refresh(successor.refresh_token)

    @pytest.mark.slow
    async def test_100_simultaneous_refreshes_of_one_token_have_one_successor(
        self, world: AuthWorld, member: Member
    ) -> None:
        outcomes = await asyncio.gather(
            *(world.refresh(member.tokens.refresh_token) for _ in range(100)), return_exceptions=True
        )
        successors = {outcome.refresh_token for outcome in outcomes if isinstance(outcome, Tokens)}
        reasons = Counter(reason_of(outcome) for outcome in outcomes if isinstance(outcome, AioRpcError))
        assert len(successors) == 1
        assert reasons == {"REFRESH_REUSED": 89}
        assert await world.scalar("SELECT generation FROM sessions") == 2
        assert await world.refresh(successors.pop())

    async def test_a_session_ends_after_30_days_without_a_refresh(self, world: AuthWorld, member: Member) -> None:
        world.clock.advance(days=29)
        tokens = await world.refresh(member.tokens.refresh_token)
        world.clock.advance(days=30)
        with raises_status(StatusCode.UNAUTHENTICATED, "REFRESH_INVALID"):
            await world.refresh(tokens.refresh_token)

    async def test_a_session_ends_after_90_days_in_any_case(self, world: AuthWorld, member: Member) -> None:
        tokens = member.tokens
        started = world.clock()
        for _ in range(4):
            world.clock.advance(days=22)
            tokens = await world.refresh(tokens.refresh_token)
        ends = tokens.refresh_token_expire_time.ToDatetime(started.tzinfo)
        assert (ends - started).days == 90
        world.clock.advance(days=2)
        with raises_status(StatusCode.UNAUTHENTICATED, "REFRESH_INVALID"):
            await world.refresh(tokens.refresh_token)

    async def test_what_is_no_token_of_ours_is_refused_and_harms_no_session(
        self, world: AuthWorld, member: Member
    ) -> None:
        genuine = await world.refresh(member.tokens.refresh_token)
        session_id = session_id_of(member.tokens)
        foreign = RefreshTokens([b"x" * 32])
        forgeries = [
            "garbage",
            "smr1_",
            "smr1_%%%",
            genuine.refresh_token[:-1],
            genuine.refresh_token + "A",
            genuine.refresh_token.removeprefix("smr1_"),
            genuine.access_token[:512],
            base64url.encode(session_id.bytes),
            *(foreign.new(session_id, generation, bytes(16)) for generation in (0, 1, 2, 3, 2**32 - 1)),
            foreign.new(uuid4(), 1, bytes(16)),
        ]
        for forgery in forgeries:
            with raises_status(StatusCode.UNAUTHENTICATED, "REFRESH_INVALID"):
                await world.refresh(forgery)
        assert await world.refresh(genuine.refresh_token)

    async def test_a_new_refresh_key_signs_nobody_out(self, make_world: MakeWorld) -> None:
        former = await make_world()
        member = await former.register(ADA)
        world = await make_world(refresh_key=b"R" * 32)
        successor = await world.refresh(member.tokens.refresh_token)
        assert await world.refresh(successor.refresh_token)

    async def test_a_refresh_carries_the_persons_present_role(self, world: AuthWorld, member: Member) -> None:
        await world.execute("UPDATE users SET role = 'ADMIN'")
        tokens = await world.refresh(member.tokens.refresh_token)
        assert b'"role":"ADMIN"' in base64url.decode(tokens.access_token.split(".")[1])

    async def test_refreshes_and_a_logout_at_the_same_time_leave_no_living_session(
        self, world: AuthWorld, member: Member
    ) -> None:
        async def refreshing() -> str:
            tokens = member.tokens
            while True:
                try:
                    tokens = await world.refresh(tokens.refresh_token)
                except AioRpcError as error:
                    return reason_of(error)

        racing = asyncio.create_task(refreshing())
        await until(lambda: world.scalar("SELECT generation > 3 FROM sessions"))
        await world.sessions.Logout(pb.LogoutRequest(), metadata=member.auth)
        assert await racing == "SESSION_REVOKED"
        assert await is_revoked(world, member.tokens)

    async def test_a_logout_that_overtakes_a_refresh_wins(self, world: AuthWorld, member: Member) -> None:
        async with world.db.transaction() as tx:
            await store.sessions.revoke(tx, session_id_of(member.tokens), RevokeReason.LOGOUT, world.clock())
            refreshing = asyncio.create_task(world.refresh(member.tokens.refresh_token))
            # The refresh has read the session as live, and waits for the row's lock.
            await until(lambda: world.scalar("SELECT bool_or(NOT granted) FROM pg_locks"))
        with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
            await refreshing

    async def test_a_deleted_account_cannot_be_refreshed(self, world: AuthWorld, member: Member) -> None:
        await world.execute("DELETE FROM users")
        with raises_status(StatusCode.UNAUTHENTICATED, "REFRESH_INVALID"):
            await world.refresh(member.tokens.refresh_token)
        with raises_status(StatusCode.NOT_FOUND, "ACCOUNT_NOT_FOUND"):
            await world.account(member)

    async def test_a_token_newer_than_a_restored_backup_is_refused(self, world: AuthWorld, member: Member) -> None:
        successor = await world.refresh(member.tokens.refresh_token)
        await world.execute("UPDATE sessions SET generation = 1")
        with raises_status(StatusCode.UNAUTHENTICATED, "REFRESH_INVALID"):
            await world.refresh(successor.refresh_token)


class TestLogout:
    async def test_a_logout_ends_the_session_it_was_made_with_and_no_other(
        self, world: AuthWorld, member: Member
    ) -> None:
        other = await world.sign_in(ADA)
        await world.sessions.Logout(pb.LogoutRequest(), metadata=member.auth)
        with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
            await world.refresh(member.tokens.refresh_token)
        with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
            await world.account(member)
        assert await world.account(other)
        assert await world.refresh(other.tokens.refresh_token)

    async def test_a_second_logout_is_refused_and_changes_nothing(self, world: AuthWorld, member: Member) -> None:
        await world.sessions.Logout(pb.LogoutRequest(), metadata=member.auth)
        first = await world.scalar("SELECT revoked_at FROM sessions")
        await until(lambda: world.ops.revocations.count)
        world.clock.advance(seconds=1)
        with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
            await world.sessions.Logout(pb.LogoutRequest(), metadata=member.auth)
        assert await world.scalar("SELECT revoked_at FROM sessions") == first


class TestAccounts:
    async def test_another_service_reads_any_account_by_its_id(self, world: AuthWorld, member: Member) -> None:
        token = bearer(service_tokens("story").mint("auth"))
        request = directory_service_pb2.GetUserRequest(user_id=member.user.id)
        assert (await world.directory.GetUser(request, metadata=tuple(token))).user == member.user
        with raises_status(StatusCode.NOT_FOUND, "ACCOUNT_NOT_FOUND"):
            await world.directory.GetUser(
                directory_service_pb2.GetUserRequest(user_id=str(uuid4())), metadata=tuple(token)
            )

    async def test_a_person_cannot_read_the_directory(self, world: AuthWorld, member: Member) -> None:
        request = directory_service_pb2.GetUserRequest(user_id=member.user.id)
        for metadata in (member.auth, tuple(bearer(service_tokens("auth").mint("story"))), ()):
            with raises_status(StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"):
                await world.directory.GetUser(request, metadata=metadata)

    async def test_an_account_needs_a_token(self, world: AuthWorld) -> None:
        with raises_status(StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"):
            await world.accounts.GetAccount(account_service_pb2.GetAccountRequest())
