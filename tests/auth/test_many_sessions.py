"""Accounts with many sessions: their number is limited, and any number ends at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest
from grpc import StatusCode
from sqlalchemy import text
from storymesh.auth.v1 import session_service_pb2 as pb
from storymesh.events.v1 import auth_events_pb2 as events
from uuid_utils.compat import uuid7

from kit.data.database import Transaction
from kit.data.paging import PageRequest
from services.auth import store
from services.auth.model import Device, RevokeReason, SignInMethod
from services.auth.store.batches import MOST
from services.auth.worker import Upkeep
from tests.auth.conftest import PASSWORD, AuthWorld, MakeWorld, Member, outcomes
from tests.statuses import raises_status
from tests.waiting import until

pytestmark = pytest.mark.slow

ADA, BOB = "ada@example.org", "bob@example.org"
NEW = "another horse battery staple"


@pytest.fixture
async def ada(world: AuthWorld) -> Member:
    return await world.register(ADA)


async def add_sessions(world: AuthWorld, member: Member, count: int) -> None:
    """Add copies of the member's session, each unused for a second longer than the one before."""
    await world.execute(
        """
        INSERT INTO sessions (id, user_id, device_name, user_agent, ip, methods, created_at, last_used_at, expires_at,
                              ends_at, generation, nonce, token_digest, rotated_at, repeats)
        SELECT gen_random_uuid(), user_id, device_name, user_agent, ip, methods, created_at,
               last_used_at - n * interval '1 s', expires_at, ends_at, generation, nonce, token_digest, rotated_at, repeats
        FROM sessions, generate_series(1, :count) n WHERE id = :id
        """,
        id=member.session_id,
        count=count,
    )


async def living(world: AuthWorld, member: Member) -> int:
    """The number of sessions on all pages of the list."""
    shown, token = 0, ""
    while True:
        request = pb.ListSessionsRequest(page_size=100, page_token=token)
        page = await world.sessions.ListSessions(request, metadata=member.auth)
        shown, token = shown + len(page.sessions), page.next_page_token
        if not token:
            return shown


async def clean_up(world: AuthWorld) -> None:
    upkeep = Upkeep(world.db, world.ops.key_rotation, world.clock, every_seconds=60, audit_kept=timedelta(days=365))
    await upkeep.clean_up()


async def refused(world: AuthWorld, member: Member) -> None:
    for call in (world.account(member), world.refresh(member.tokens.refresh_token)):
        with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
            await call


class TestMost:
    async def test_the_session_unused_longest_ends_when_another_is_opened(self, make_world: MakeWorld) -> None:
        world = await make_world(sessions_per_account=3)
        first = await world.register(ADA)
        devices = []
        for _ in range(2):
            world.clock.advance(minutes=1)
            devices.append(await world.sign_in(ADA))
        world.clock.advance(minutes=1)
        # The oldest, but no longer the one unused longest.
        first.tokens = await world.refresh(first.tokens.refresh_token)
        bob = await world.register(BOB)
        newest = await world.sign_in(ADA)
        await until(lambda: world.ops.revocations.count)
        await refused(world, devices[0])
        for member in (first, devices[1], newest, bob):
            assert await world.account(member)
            assert await world.refresh(member.tokens.refresh_token)
        (event,) = await world.told(events.SessionsRevoked)
        assert (event.user_id, event.count) == (first.user.id, 1)
        assert event.reason == events.SESSION_REVOKE_REASON_TOO_MANY

    async def test_what_has_ended_takes_no_place(self, make_world: MakeWorld) -> None:
        world = await make_world(sessions_per_account=2)
        ada = await world.register(ADA)
        for _ in range(4):
            await world.log_out(await world.sign_in(ADA))
        assert await world.account(ada)
        assert await world.told(events.SessionsRevoked) == []

    async def test_fifty_sign_ins_at_once_leave_no_more_than_there_may_be(self, make_world: MakeWorld) -> None:
        world = await make_world(sessions_per_account=5)
        await world.register(ADA)
        challenge = await world.start_code(ADA)
        code = await world.code(challenge)

        async def sign_in() -> None:
            """Sign in; retry while the service is overloaded or the login throttled."""
            while not (await outcomes(world.sign_in(ADA)))[""]:
                pass

        await asyncio.gather(*(sign_in() for _ in range(49)), world.complete_code(challenge, code))
        assert await world.scalar("SELECT count(*) FROM sessions WHERE revoked_at IS NULL") == 5
        assert await world.scalar("SELECT count(*) FROM sessions") == 51

    async def test_a_sign_in_waits_for_another_one_to_the_account_and_counts_its_session(
        self, make_world: MakeWorld
    ) -> None:
        world = await make_world(sessions_per_account=2)
        ada = await world.register(ADA)
        async with world.db.transaction() as tx:
            account = await store.users.credentials_of(tx, UUID(ada.user.id))
            assert account
            assert await store.users.hold_password(tx, account.user.id, account.password_changed_at)
            await world.ops.sessions.open(tx, account.user, Device("one", "", ""), SignInMethod.PASSWORD)
            signing_in = asyncio.create_task(world.sign_in(ADA))
            await until(world.waits_for_a_lock)
        assert await living(world, await signing_in) == 2

    async def test_of_far_too_many_each_sign_in_ends_some(self, make_world: MakeWorld) -> None:
        """As after the setting was lowered. Ending all of them in one call would delay it and others."""
        world = await make_world(sessions_per_account=10)
        ada = await world.register(ADA)
        await add_sessions(world, ada, MOST + 500)
        await world.sign_in(ADA)
        assert len(await world.told(events.SessionsRevoked)) == 1
        newest = await world.sign_in(ADA)
        assert await living(world, newest) == 10


class TestAtOnce:
    async def test_what_is_opened_in_the_same_moment_lives_and_what_was_there_ends(
        self, world: AuthWorld, ada: Member
    ) -> None:
        """The clock stands still, so that time does not tell the sessions apart."""
        before = await world.sign_in(ADA)
        await world.sessions.RevokeOtherSessions(pb.RevokeOtherSessionsRequest(), metadata=ada.auth)
        after = await world.sign_in(ADA)
        await until(lambda: world.ops.revocations.count)
        await refused(world, before)
        for member in (ada, after):
            assert await world.account(member)
            member.tokens = await world.refresh(member.tokens.refresh_token)
        # The session that was kept ends when another one ends all.
        await world.sessions.RevokeOtherSessions(pb.RevokeOtherSessionsRequest(), metadata=after.auth)
        await refused(world, ada)
        assert await living(world, after) == 1

    async def test_more_than_one_transaction_marks_are_ended_by_it_all_the_same(
        self, world: AuthWorld, ada: Member
    ) -> None:
        await add_sessions(world, ada, MOST + 500)
        others = [await world.sign_in(ADA) for _ in range(3)]
        unmark = "UPDATE sessions SET revoked_at = NULL, revoke_reason = NULL WHERE id = ANY(:ids)"
        await world.execute("UPDATE sessions SET revoked_at = NULL, revoke_reason = NULL")
        answer = await world.sessions.RevokeOtherSessions(pb.RevokeOtherSessionsRequest(), metadata=ada.auth)
        assert answer.revoked_count == MOST + 503
        unmarked = "SELECT count(*) FROM sessions WHERE revoked_at IS NULL"
        assert await world.scalar(unmarked) == 504
        # An unpredictable part is marked at once; these must belong to the rest.
        await world.execute(unmark, ids=[each.session_id for each in others])
        assert await living(world, ada) == 1
        for each in others:
            await refused(world, each)
        again = await world.sessions.RevokeOtherSessions(pb.RevokeOtherSessionsRequest(), metadata=ada.auth)
        assert again.revoked_count == 0
        after = await world.sign_in(ADA)
        await clean_up(world)
        assert await world.scalar(unmarked) == 2
        assert await world.scalar("SELECT count(*) FROM users WHERE unmarked_reason IS NOT NULL") == 0
        assert await living(world, after) == 2
        # Upkeep deletes them like any other.
        world.clock.advance(days=8)
        await clean_up(world)
        assert await world.scalar("SELECT count(*) FROM sessions") == 2

    async def test_their_account_is_not_looked_up_for_each_of_them(self, world: AuthWorld, ada: Member) -> None:
        """Whatever plan Postgres chooses: when it expects few sessions, a join scans all accounts for each."""
        await add_sessions(world, ada, 2 * MOST)
        now, user_id, session_id = world.clock(), UUID(ada.user.id), ada.session_id
        some = PageRequest(size=100, before=None)
        async with world.db.transaction() as tx:
            found = await store.sessions.find(tx, session_id)
        assert found
        another = replace(found[0], id=uuid7())
        ways: dict[str, Callable[[Transaction], Awaitable[object]]] = {
            "count": lambda tx: store.sessions.count_live(tx, user_id, now),
            "list": lambda tx: store.sessions.page(tx, user_id, some, now),
            "surplus": lambda tx: store.sessions.insert(tx, another, most=100, with_addresses=True),
            "end": lambda tx: store.sessions.revoke_all(tx, user_id, RevokeReason.REVOKED, now, but=session_id),
        }
        looks = (
            "SELECT pg_stat_get_xact_numscans('users'::regclass) + pg_stat_get_xact_numscans('users_pkey'::regclass)"
        )
        for name, way in ways.items():
            async with world.db.transaction() as tx:
                for switched_off in ("hashjoin", "mergejoin", "material", "memoize"):
                    await tx.execute(text(f"SET LOCAL enable_{switched_off} = off"))
                before = await tx.scalar(text(looks))
                await way(tx)
                assert await tx.scalar(text(looks)) - before < 10, name

    async def test_a_sign_in_looks_for_too_many_of_them_once(self, world: AuthWorld, ada: Member) -> None:
        """Whatever plan Postgres chooses: when it expects few sessions, a join sorts the account's for each session there is."""
        await add_sessions(world, ada, 200)
        looks = text(
            "SELECT sum(pg_stat_get_xact_numscans(indexrelid)) FROM pg_index WHERE indrelid = 'sessions'::regclass"
        )
        async with world.db.transaction() as tx:
            found = await store.sessions.find(tx, ada.session_id)
            assert found
            for switched_off in ("hashjoin", "mergejoin", "material", "memoize"):
                await tx.execute(text(f"SET LOCAL enable_{switched_off} = off"))
            before = await tx.scalar(looks)
            inserted = await store.sessions.insert(tx, replace(found[0], id=uuid7()), most=10_000, with_addresses=True)
            assert await tx.scalar(looks) - before < 10
        assert inserted.surplus == []

    @pytest.mark.timeout(300)  # inserts 100,000 rows first
    async def test_a_hundred_thousand_sessions_end_by_one_entry_one_event_and_few_writes(
        self, world: AuthWorld, ada: Member
    ) -> None:
        bob = await world.register(BOB)
        await add_sessions(world, ada, 100_000)
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "revokeOthers": lambda: world.sessions.RevokeOtherSessions(
                pb.RevokeOtherSessionsRequest(), metadata=ada.auth
            ),
            "changePassword": lambda: world.change_password(ada, NEW),
            "completePasswordReset": lambda: world.complete_reset(challenge, code, PASSWORD),
            "delete": lambda: world.delete_account(deleting, password=PASSWORD),
        }
        for name, call in calls.items():
            if name == "completePasswordReset":
                challenge = await world.start_reset(ADA)
                code = await world.code(challenge)
            if name == "delete":
                deleting = await world.sign_in(ADA)
            for statement in (
                "UPDATE users SET session_epoch = 0, kept_session_id = NULL",
                "UPDATE sessions SET revoked_at = NULL, revoke_reason = NULL WHERE revoked_at IS NOT NULL",
                "UPDATE sessions SET epoch = 0 WHERE epoch > 0",
                "DELETE FROM revocations",
            ):
                await world.execute(statement)
            told = len(await world.published())
            ending = asyncio.ensure_future(call())
            while not ending.done():
                assert await world.account(bob)
            await ending
            assert await world.scalar("SELECT count(*) FROM revocations") == 1, name
            assert await world.scalar("SELECT count(*) FROM sessions WHERE revoked_at IS NOT NULL") in (0, MOST), name
            assert len(await world.published()) - told <= 3, name
            revoked = (await world.told(events.SessionsRevoked))[-1]
            assert revoked.count >= 100_000, name


async def test_a_long_history_is_erased_in_parts(world: AuthWorld, ada: Member) -> None:
    """Entries of a deleted account keep what happened and when, but not from where."""
    await world.execute(
        "INSERT INTO audit_entries (id, occurred_at, action, reason, actor_id, subject_id, ip, user_agent) "
        "SELECT gen_random_uuid(), now(), 'SIGN_IN_PASSWORD', '', :id, :id, '198.51.100.7', 'Reader/1.0' "
        "FROM generate_series(1, :count)",
        id=ada.user.id,
        count=2 * MOST + 10,
    )
    await world.delete_account(ada, password=PASSWORD)
    telling = "SELECT count(*) FROM audit_entries WHERE ip <> ''"
    assert 0 < int(str(await world.scalar(telling))) < 2 * MOST
    await clean_up(world)
    assert await world.scalar(telling) == 0
    assert await world.scalar("SELECT count(*) FROM audit_erasures") == 0
    assert int(str(await world.scalar("SELECT count(*) FROM audit_entries"))) > 2 * MOST
