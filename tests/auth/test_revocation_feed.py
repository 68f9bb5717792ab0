"""The stream of revocations to every service."""

from __future__ import annotations

import asyncio
import logging
import statistics
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from time import perf_counter
from typing import Any
from uuid import uuid4

import grpc
import psycopg
import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError
from storymesh.auth.v1 import key_service_pb2, session_service_pb2
from storymesh.auth.v1 import revocation_service_pb2 as pb

from kit.identity.revocations import Revocation, RevocationKind
from local.harness import Servers
from services.auth import store
from services.auth.worker import Upkeep
from tests.auth.conftest import PASSWORD, AuthWorld, MakeWorld, Member
from tests.identity import bearer, service_tokens
from tests.statuses import raises_status, reason_of
from tests.waiting import until

ADA = "ada@example.org"
Message = pb.WatchRevocationsResponse


@pytest.fixture
async def ada(world: AuthWorld) -> Member:
    return await world.register(ADA)


class Watch:
    """One service's stream."""

    def __init__(self, world: AuthWorld, metadata: Any = None) -> None:
        metadata = bearer(service_tokens("story").mint("auth")) if metadata is None else metadata
        self._call: Any = world.revocations.WatchRevocations(pb.WatchRevocationsRequest(), metadata=metadata)

    async def message(self) -> Message:
        async with asyncio.timeout(15):
            message = await self._call.read()
        if message is grpc.aio.EOF:
            raise EOFError
        assert isinstance(message, Message)
        return message

    async def snapshot(self) -> list[str]:
        """The first message: all revocations in force."""
        message = await self.message()
        assert message.WhichOneof("message") == "snapshot"
        return [target(each) for each in message.snapshot.revocations]

    async def added(self) -> str:
        """The next revocation, skipping heartbeats."""
        while True:
            message = await self.message()
            if message.WhichOneof("message") == "revocation":
                return target(message.revocation)
            assert message.WhichOneof("message") == "heartbeat"

    async def end(self) -> None:
        """Read on until the stream fails, and return its error."""
        while True:
            await self.message()

    def cancel(self) -> None:
        self._call.cancel()


def target(revocation: pb.Revocation) -> str:
    kind = revocation.WhichOneof("target")
    assert kind
    return f"{kind} {getattr(revocation, kind)}"


def session(member: Member) -> str:
    return f"session_id {member.session_id}"


async def is_refused(world: AuthWorld, member: Member) -> bool:
    """Whether the replica's list refuses the token: listing sessions does not check the session's row."""
    try:
        await world.sessions.ListSessions(session_service_pb2.ListSessionsRequest(), metadata=member.auth)
    except AioRpcError as error:
        return reason_of(error) == "SESSION_REVOKED"
    return False


async def test_a_snapshot_comes_first_and_then_each_revocation_in_order(world: AuthWorld, ada: Member) -> None:
    others = [await world.sign_in(ADA) for _ in range(4)]
    await world.log_out(others[0])
    await until(lambda: world.ops.revocations.count)
    watch = Watch(world)
    assert await watch.snapshot() == [session(others[0])]
    for other in others[1:]:
        await world.log_out(other)
        assert await watch.added() == session(other)
    late = Watch(world)
    assert sorted(await late.snapshot()) == sorted(map(session, others))
    for each in (watch, late):
        each.cancel()


async def test_people_and_keys_are_revoked_as_well(world: AuthWorld) -> None:
    admin = await world.make_admin("admin@example.org")
    ada = await world.register(ADA)
    watch = Watch(world)
    await watch.snapshot()
    await world.delete_account(ada, password=PASSWORD)
    assert await watch.added() == f"user_id {ada.user.id}"
    kid = (await world.keys.GetJwks(key_service_pb2.GetJwksRequest())).keys[0].kid
    await world.keys.DropKey(key_service_pb2.DropKeyRequest(kid=kid), metadata=admin.auth)
    assert await watch.added() == f"kid {kid}"
    watch.cancel()


async def test_an_entry_says_when_it_can_be_forgotten_and_is_then(world: AuthWorld, ada: Member) -> None:
    await world.log_out(ada)
    await until(lambda: world.ops.revocations.count)
    watch = Watch(world)
    (entry,) = (await watch.message()).snapshot.revocations
    watch.cancel()
    # An access token lives ten minutes, and two clocks may each be half a minute wrong.
    assert entry.expire_time.ToDatetime(world.clock().tzinfo) == world.clock() + timedelta(minutes=11)
    world.clock.advance(minutes=11, seconds=29)
    assert world.ops.revocations.current()
    world.clock.advance(seconds=1)
    again = Watch(world)
    assert await again.snapshot() == []
    again.cancel()
    upkeep = Upkeep(world.db, world.ops.key_rotation, world.clock, every_seconds=60, audit_kept=timedelta(days=365))
    await upkeep.clean_up()
    assert await world.scalar("SELECT count(*) FROM revocations") == 0


async def test_heartbeats_come_while_there_is_nothing_to_tell(make_world: MakeWorld) -> None:
    world = await make_world(quick_feed=True)
    watch = Watch(world)
    await watch.snapshot()
    for _ in range(3):
        assert (await watch.message()).WhichOneof("message") == "heartbeat"
    watch.cancel()


class TestAccess:
    @pytest.mark.parametrize("metadata", ["nobody", "a person", "for another service", "a made-up key"])
    async def test_only_services_may_watch(self, world: AuthWorld, ada: Member, metadata: str) -> None:
        given = {
            "nobody": (),
            "a person": ada.auth,
            "for another service": bearer(service_tokens("auth").mint("story")),
            "a made-up key": bearer("made.up.token"),
        }[metadata]
        with raises_status(StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"):
            await Watch(world, given).message()


class TestTrust:
    """Without heartbeats, followers know that their list may be incomplete."""

    @pytest.fixture
    async def world(self, make_world: MakeWorld) -> AuthWorld:
        return await make_world(quick_feed=True)

    async def test_nothing_is_said_while_the_database_does_not_answer(
        self, world: AuthWorld, servers: Servers, caplog: pytest.LogCaptureFixture
    ) -> None:
        ada = await world.register(ADA)
        watch = Watch(world)
        await watch.snapshot()
        async with no_database(servers):
            await until(lambda: world.ops.revocations.age_seconds > 0.4)
            newcomer = Watch(world)
            told = [asyncio.create_task(each.message()) for each in (watch, newcomer)]
            done, _ = await asyncio.wait(told, timeout=1.2)
            # Messages that were sent before the database went down may still arrive.
            assert {task.result().WhichOneof("message") for task in done} <= {"heartbeat"}
            assert told[1] not in done
            still = [asyncio.create_task(watch.message()) if told[0] in done else told[0], told[1]]
            assert not (await asyncio.wait(still, timeout=1.0))[0]
        assert (await still[0]).WhichOneof("message") == "heartbeat"
        assert (await still[1]).WhichOneof("message") == "snapshot"
        await world.log_out(ada)
        for each in (watch, newcomer):
            assert await each.added() == session(ada)
            each.cancel()
        assert "revocations cannot be read now" in caplog.text

    async def test_what_was_revoked_while_the_feed_was_blind_is_told_afterwards(
        self, world: AuthWorld, ada: Member
    ) -> None:
        watch = Watch(world)
        await watch.snapshot()
        await world.execute("ALTER TABLE revocations RENAME TO away")
        await until(lambda: world.ops.revocations.age_seconds > 0.4)
        missed = Revocation(RevocationKind.SESSION, str(uuid4()), world.clock() + timedelta(minutes=1))
        await world.execute(
            "INSERT INTO away (kind, value, expires_at) VALUES ('session', :value, :expires_at)",
            value=missed.value,
            expires_at=missed.expires_at,
        )
        await world.execute("ALTER TABLE away RENAME TO revocations")
        assert await watch.added() == f"session_id {missed.value}"
        watch.cancel()

    async def test_a_transaction_that_was_open_for_long_and_commits_last_is_not_missed(
        self, world: AuthWorld, ada: Member
    ) -> None:
        others = [await world.sign_in(ADA) for _ in range(3)]
        watch = Watch(world)
        await watch.snapshot()
        early = Revocation(RevocationKind.SESSION, str(uuid4()), world.clock() + timedelta(minutes=1))
        async with world.db.transaction() as tx:
            await store.revocations.insert(tx, [early])
            for other in others:
                await world.log_out(other)
                assert await watch.added() == session(other)
        assert await watch.added() == f"session_id {early.value}"
        # No revocation arrives twice, although it was read twice.
        await world.log_out(ada)
        assert await watch.added() == session(ada)
        watch.cancel()

    async def test_a_revocation_that_is_rolled_back_is_never_told(self, world: AuthWorld, ada: Member) -> None:
        watch = Watch(world)
        await watch.snapshot()
        async with world.refused_by("outbox"):
            with raises_status(StatusCode.INTERNAL, "INTERNAL"):
                await world.log_out(ada)
        other = await world.sign_in(ADA)
        await world.log_out(other)
        assert await watch.added() == session(other)
        watch.cancel()
        assert not await is_refused(world, ada)


@asynccontextmanager
async def no_database(servers: Servers) -> AsyncIterator[None]:
    """Terminate all connections of the service, and allow no new ones."""
    async with await psycopg.AsyncConnection.connect(servers.postgres_admin_url, autocommit=True) as admin:
        await admin.execute("ALTER ROLE auth NOLOGIN")
        await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'auth'")
        try:
            yield
        finally:
            await admin.execute("ALTER ROLE auth LOGIN")


class TestReplicas:
    async def test_each_tells_what_was_revoked_at_the_other_before_and_after_it_began(
        self, make_world: MakeWorld
    ) -> None:
        first = await make_world()
        ada = await first.register(ADA)
        others = [await first.sign_in(ADA) for _ in range(2)]
        await first.log_out(others[0])
        second = await make_world()
        watch = Watch(second)
        assert await watch.snapshot() == [session(others[0])]
        assert await is_refused(second, others[0])
        assert not await is_refused(second, others[1])
        await first.log_out(others[1])
        assert await watch.added() == session(others[1])
        assert await is_refused(second, others[1])
        await second.log_out(ada)
        await until(lambda: is_refused(first, ada))
        watch.cancel()

    async def test_a_replica_that_drains_sends_its_watchers_away(
        self, make_world: MakeWorld, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.ERROR)
        first, second = await make_world(), await make_world()
        leaving, staying = Watch(first), Watch(second)
        for watch in (leaving, staying):
            await watch.snapshot()
        first.drain()
        with raises_status(StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE"):
            await leaving.end()
        ada = await second.register(ADA)
        await second.log_out(ada)
        assert await staying.added() == session(ada)
        staying.cancel()
        assert caplog.text == ""

    @pytest.mark.slow
    async def test_of_100_revocations_at_one_replica_99_hold_at_the_other_within_two_seconds(
        self, make_world: MakeWorld
    ) -> None:
        """From the answer to the logout until the other replica refuses the access token."""
        first, second = await make_world(sessions_per_account=200), await make_world()
        ada = await first.register(ADA)
        members = [await first.sign_in(ADA) for _ in range(100)]

        async def seconds(member: Member) -> float:
            await first.log_out(member)
            began = perf_counter()
            while not await is_refused(second, member):
                pass
            return perf_counter() - began

        for member in members[:3]:
            assert not await is_refused(second, member)
        async with asyncio.timeout(30):
            taken = [await seconds(member) for member in members[:50]]
            # More at once would measure how long their calls wait for each other in this process.
            for start in range(50, 100, 10):
                taken += await asyncio.gather(*map(seconds, members[start : start + 10]))
        assert statistics.quantiles(taken, n=100)[98] < 2.0
        assert not await is_refused(second, ada)
