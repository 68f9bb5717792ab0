"""The worker's upkeep."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from grpc import StatusCode
from storymesh.auth.v1 import session_service_pb2

from services.auth.worker import Upkeep
from tests.auth.conftest import AuthWorld
from tests.statuses import raises_status
from tests.waiting import until

ADA = "ada@example.org"


def upkeep(world: AuthWorld) -> Upkeep:
    return Upkeep(world.db, world.ops.key_rotation, world.clock, every_seconds=60, audit_kept=timedelta(days=365))


async def test_registrations_are_removed_when_they_have_ended(world: AuthWorld) -> None:
    await world.start(ADA)
    world.clock.advance(minutes=29)
    await world.start("bob@example.org")
    world.clock.advance(minutes=1)
    await upkeep(world).clean_up()
    assert await world.scalar("SELECT string_agg(email, ',') FROM registrations") == "bob@example.org"


async def test_ended_sessions_are_kept_a_week_to_say_why_they_ended(world: AuthWorld) -> None:
    member = await world.register(ADA)
    await world.sessions.Logout(session_service_pb2.LogoutRequest(), metadata=member.auth)
    other = await world.sign_in(ADA)
    world.clock.advance(days=7)
    await upkeep(world).clean_up()
    with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
        await world.refresh(member.tokens.refresh_token)
    world.clock.advance(seconds=1)
    await upkeep(world).clean_up()
    with raises_status(StatusCode.UNAUTHENTICATED, "REFRESH_INVALID"):
        await world.refresh(member.tokens.refresh_token)
    assert await world.refresh(other.tokens.refresh_token)
    world.clock.advance(days=38)
    await upkeep(world).clean_up()
    assert await world.scalar("SELECT count(*) FROM sessions") == 0


async def test_upkeep_works_until_it_is_told_to_stop(world: AuthWorld) -> None:
    await world.start(ADA)
    world.clock.advance(days=30)
    stopping = asyncio.Event()
    working = asyncio.create_task(upkeep(world).run(stopping))
    await until(lambda: world.scalar("SELECT count(*) = 0 FROM registrations"))
    assert await world.scalar("SELECT count(*) FROM signing_keys WHERE state = 'PENDING'") == 1
    stopping.set()
    await asyncio.wait_for(working, 5)
