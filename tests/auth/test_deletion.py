"""Permanent deletion of an account."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf.struct_pb2 import ListValue
from grpc import StatusCode
from grpc.aio import AioRpcError
from redis.asyncio import Redis
from sqlalchemy import text
from storymesh.auth.v1 import account_service_pb2 as pb
from storymesh.events.v1 import auth_events_pb2 as events

from kit.events.relay import Relay
from mesh.event_routes import routes
from tests.auth.conftest import PASSWORD, AuthWorld, MakeWorld, Member, outcomes, wrong
from tests.auth.test_password_change import NEW, WRONG
from tests.statuses import raises_status, reason_of, violated_fields
from tests.waiting import until

pytestmark = pytest.mark.slow

ADA, BOB = "ada@example.org", "bob@example.org"


@pytest.fixture
async def ada(world: AuthWorld) -> Member:
    return await world.register(ADA, username="countess")


async def exists(world: AuthWorld, member: Member) -> bool:
    return bool(await world.scalar("SELECT count(*) FROM users WHERE id = :id", id=member.user.id))


class TestProof:
    async def test_without_a_proof_nothing_is_deleted(self, world: AuthWorld, ada: Member) -> None:
        with raises_status(StatusCode.FAILED_PRECONDITION, "REAUTH_REQUIRED"):
            await world.delete_account(ada)
        assert await world.account(ada)

    @pytest.mark.parametrize("half", [{"code": "12345678"}, {"challenge_id": "0197a0de-0000-7000-8000-000000000000"}])
    async def test_half_a_code_is_told_to_be_that(self, world: AuthWorld, ada: Member, half: dict[str, str]) -> None:
        with pytest.raises(AioRpcError) as raised:
            await world.delete_account(ada, password=PASSWORD, **half)
        assert raised.value.code() is StatusCode.INVALID_ARGUMENT
        assert len(violated_fields(raised.value)) == 1
        assert await exists(world, ada)

    async def test_the_password_will_do(self, world: AuthWorld, ada: Member) -> None:
        await world.delete_account(ada, password=PASSWORD)
        assert not await exists(world, ada)

    async def test_a_wrong_password_is_refused_and_slowed_down(self, world: AuthWorld, ada: Member) -> None:
        for _ in range(5):
            with raises_status(StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"):
                await world.delete_account(ada, password=WRONG)
        with raises_status(StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_SIGN_INS"):
            await world.delete_account(ada, password=PASSWORD)
        assert await exists(world, ada)

    async def test_a_disabled_password_will_not_do_and_a_sign_in_code_does(self, make_world: MakeWorld) -> None:
        world = await make_world(sign_in_most_failures=1)
        ada = await world.register(ADA)
        for password in (WRONG, PASSWORD):
            with raises_status(StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"):
                await world.delete_account(ada, password=password)
        challenge = await world.start_code(ADA)
        code = await world.code(challenge)
        for _ in range(2):
            with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
                # A given code takes precedence over a password.
                await world.delete_account(ada, password=PASSWORD, challenge_id=challenge, code=wrong(code))
        await world.delete_account(ada, challenge_id=challenge, code=code)
        assert not await exists(world, ada)

    async def test_somebody_elses_code_is_refused_and_stays_good_for_them(self, world: AuthWorld, ada: Member) -> None:
        bob = await world.register(BOB)
        challenge = await world.start_code(BOB)
        code = await world.code(challenge)
        for _ in range(6):
            with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
                await world.delete_account(ada, challenge_id=challenge, code=code)
        assert await exists(world, ada)
        assert (await world.complete_code(challenge, code)).user == bob.user

    async def test_a_session_that_has_ended_deletes_nothing(self, world: AuthWorld, ada: Member) -> None:
        challenge = await world.start_code(ADA)
        code = await world.code(challenge)
        await world.execute("UPDATE sessions SET revoked_at = created_at, revoke_reason = 'REVOKED'")
        for proof in ({"password": PASSWORD}, {"challenge_id": challenge, "code": code}):
            with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
                await world.delete_account(ada, **proof)
        assert await exists(world, ada)


class TestErasure:
    async def test_nothing_of_the_person_is_left_but_what_happened_and_when(
        self, world: AuthWorld, ada: Member, redis: Redis
    ) -> None:
        preferences = ListValue()
        preferences.extend(["analytical"])
        update = pb.UpdateAccountRequest(first_name="Augusta", last_name="Lovelace", preferences=preferences)
        from_home = (*ada.auth, ("x-storymesh-client-address", "198.51.100.7"), ("x-user-agent", "Reader/1.0"))
        await world.accounts.UpdateAccount(update, metadata=from_home)
        change = await world.start_email_change(ada, "lovelace@example.org")
        world.clock.advance(minutes=1)
        await world.start(ADA)
        await world.start_code(ADA)
        await world.start_reset(ADA)
        with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
            await world.complete_email_change(ada, change, wrong(await world.code(change)))
        bob = await world.register(BOB)
        relay = Relay(world.db, redis, routes(), service="auth", database_url="postgresql://")
        while await relay.publish():
            pass
        kept = await audit_of(world, ada)
        await world.delete_account(ada, password=PASSWORD)
        for table in ("challenges", "registrations"):
            assert await world.scalar(f"SELECT count(*) FROM {table}") == 0
        for table in ("users", "sessions"):
            assert await world.scalar(f"SELECT count(*) FROM {table}") == 1
        assert (
            await world.scalar(
                "SELECT count(*) FROM outbox WHERE key = :id AND published_at IS NOT NULL", id=ada.user.id
            )
            == 0
        )
        assert await audit_of(world, ada) == [*kept, "ACCOUNT_DELETE"]
        traces = (
            "SELECT count(*) FROM audit_entries WHERE (actor_id = :id OR subject_id = :id) AND ip || user_agent <> ''"
        )
        assert await world.scalar(traces, id=ada.user.id) == 0
        assert await world.scalar(traces, id=bob.user.id) == 1
        async with world.db.transaction() as tx:
            tables = (await tx.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"))).all()
            rows = [row for table in tables for row in await tx.scalars(text(f"SELECT t::text FROM {table} t"))]
        for word in (
            "ada@",
            "lovelace@",
            "countess",
            "Augusta",
            "Lovelace",
            "analytical",
            "198.51.100.7",
            "Reader/1.0",
        ):
            assert not [row for row in rows if word in row]

    async def test_the_event_holds_nothing_but_the_id_and_comes_last(self, world: AuthWorld, ada: Member) -> None:
        await world.sign_in(ADA)
        await world.delete_account(ada, password=PASSWORD)
        name, payload = (await world.published())[-1]
        assert name == events.UserDeleted.DESCRIPTOR.full_name
        assert payload == events.UserDeleted(user_id=ada.user.id).SerializeToString()
        (revoked,) = await world.told(events.SessionsRevoked)
        assert (revoked.user_id, revoked.count) == (ada.user.id, 2)
        assert revoked.reason == events.SESSION_REVOKE_REASON_ACCOUNT_DELETED

    async def test_the_address_and_the_username_can_be_registered_anew_at_once(
        self, world: AuthWorld, ada: Member
    ) -> None:
        world.clock.advance(minutes=1)
        await world.delete_account(ada, password=PASSWORD)
        again = await world.register(ADA, username="countess")
        assert again.user.id != ada.user.id
        assert await world.account(again)
        # Refresh tokens of the former account are void.
        with raises_status(StatusCode.UNAUTHENTICATED, "REFRESH_INVALID"):
            await world.refresh(ada.tokens.refresh_token)

    async def test_its_access_tokens_are_refused_at_the_door_soon(self, world: AuthWorld, ada: Member) -> None:
        other = await world.sign_in(ADA)
        await world.delete_account(ada, password=PASSWORD)
        await until(lambda: world.ops.revocations.count)
        for member in (ada, other):
            for call in (world.account(member), world.log_out(member)):
                with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
                    await call

    @pytest.mark.parametrize("table", ["outbox", "audit_entries", "revocations"])
    async def test_a_deletion_that_cannot_be_recorded_whole_did_not_happen(
        self, world: AuthWorld, ada: Member, table: str
    ) -> None:
        challenge = await world.start_code(ADA)
        code = await world.code(challenge)
        async with world.refused_by(table):
            for proof in ({"password": PASSWORD}, {"challenge_id": challenge, "code": code}):
                with raises_status(StatusCode.INTERNAL, "INTERNAL"):
                    await world.delete_account(ada, **proof)
        assert await world.account(ada)
        await world.delete_account(ada, challenge_id=challenge, code=code)


async def audit_of(world: AuthWorld, member: Member) -> list[str]:
    query = text("SELECT action FROM audit_entries WHERE actor_id = :id OR subject_id = :id ORDER BY id")
    async with world.db.transaction() as tx:
        return list(await tx.scalars(query, {"id": member.user.id}))


class TestRaces:
    async def test_whatever_is_done_at_the_same_time_leaves_neither_session_nor_trace(self, world: AuthWorld) -> None:
        for number in range(6):
            world.clock.advance(seconds=1)
            email = f"person{number}@example.org"
            member = await world.register(email)
            others = [await world.sign_in(email) for _ in range(3)]
            reset = await world.start_reset(email)
            code = await world.code(reset)
            calls: list[Any] = [
                *(world.refresh(other.tokens.refresh_token) for other in others),
                *(world.sign_in(email) for _ in range(2)),
                world.change_password(others[0], NEW),
                world.start_code(email),
                world.start_email_change(others[1], f"moved{number}@example.org"),
                world.complete_reset(reset, code, NEW),
                world.log_out(others[2]),
                world.delete_account(others[1], password=PASSWORD),
                world.delete_account(member, password=PASSWORD),
            ]
            calls = calls[number:] + calls[:number]
            reasons = await outcomes(*calls)
            assert reasons.keys() <= {
                "",
                "SESSION_REVOKED",
                "INVALID_CREDENTIALS",
                "REFRESH_INVALID",
                "CODE_INVALID",
                "ACCOUNT_NOT_FOUND",
            }
            if await exists(world, member):
                # The change or the reset came first; then the deletion is refused only because its proof is void.
                continue
            assert await world.scalar("SELECT count(*) FROM sessions WHERE user_id = :id", id=member.user.id) == 0

    async def test_a_sign_in_that_the_deletion_overtakes_opens_no_session(self, world: AuthWorld, ada: Member) -> None:
        async with world.db.transaction() as tx:
            await tx.execute(text("DELETE FROM users"))
            signing_in = asyncio.create_task(world.sign_in(ADA))
            await until(world.waits_for_a_lock)
        with raises_status(StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"):
            await signing_in

    async def test_what_is_refused_after_the_deletion_is_recorded_without_where_it_came_from(
        self, world: AuthWorld, ada: Member
    ) -> None:
        """The deletion has erased the addresses already, and no later erasure would remove a new one."""
        async with world.db.transaction() as tx:
            await tx.execute(text("DELETE FROM users"))
            calls = [
                asyncio.create_task(call) for call in (world.sign_in(ADA), world.delete_account(ada, password=PASSWORD))
            ]
            waiting = "SELECT count(*) = 2 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            await until(lambda: world.scalar(waiting))
        refused = await asyncio.gather(*calls, return_exceptions=True)
        assert {reason_of(each) for each in refused if isinstance(each, AioRpcError)} == {
            "INVALID_CREDENTIALS",
            "SESSION_REVOKED",
        }
        assert await world.scalar("SELECT count(*) FROM audit_entries WHERE reason <> ''") == 2
        assert await world.scalar("SELECT string_agg(ip || user_agent, '') FROM audit_entries WHERE reason <> ''") == ""
