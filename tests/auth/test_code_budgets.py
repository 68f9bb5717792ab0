"""Strangers who request codes for an address can neither lock its owner out nor flood its mailbox."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any
from uuid import uuid4

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError
from storymesh.events.v1 import auth_events_pb2 as events

from tests.auth.conftest import PASSWORD, AuthWorld, Member, wrong
from tests.auth.test_password_change import NEW
from tests.statuses import raises_status, reason_of

pytestmark = pytest.mark.slow

ADA, BOB = "ada@example.org", "bob@example.org"
HOME, ELSEWHERE, STRANGERS = "192.0.2.1", "192.0.2.77", "198.51.100.1"

Start = Callable[..., Awaitable[str]]
Redeem = Callable[[str, str], Awaitable[Any]]

KINDS = ["registration", "sign-in", "reset"]
OF_ACCOUNTS = ["sign-in", "reset"]


def conversation(world: AuthWorld, kind: str) -> tuple[Start, Redeem]:
    """The calls that request a code, and redeem it."""
    match kind:
        case "registration":
            return world.start, world.complete
        case "sign-in":
            return world.start_code, world.complete_code
        case _:
            return world.start_reset, lambda challenge, code: world.complete_reset(challenge, code, NEW)


async def owner(world: AuthWorld, kind: str) -> Member | None:
    """The owner of the address. A person who registers has no account yet."""
    return None if kind == "registration" else await world.register(ADA)


async def flood(world: AuthWorld, start: Start, *, times: int, seconds: float, ip: str = STRANGERS) -> None:
    for _ in range(times):
        with suppress(AioRpcError):
            await start(ADA, ip=ip)
        world.clock.advance(seconds=seconds)


async def gets_in(world: AuthWorld, start: Start, redeem: Redeem, **how: Any) -> None:
    """Request a code once, find its mail, and redeem it."""
    challenge = await start(ADA, **how)
    await redeem(challenge, await newest_code(world))


async def newest_code(world: AuthWorld) -> str:
    """The newest code in the mailbox, by any requester."""
    issued = await world.told(events.CodeIssued)
    return await world.code(issued[-1].challenge_id)


@pytest.mark.parametrize("kind", KINDS)
class TestStrangersElsewhere:
    @pytest.mark.parametrize(("times", "seconds"), [(3, 60), (10, 60), (10, 700), (1000, 0.1)])
    async def test_a_flood_from_another_network_keeps_nobody_out(
        self, world: AuthWorld, kind: str, times: int, seconds: float
    ) -> None:
        await owner(world, kind)
        start, redeem = conversation(world, kind)
        await flood(world, start, times=times if kind != "registration" else min(times, 40), seconds=seconds)
        await gets_in(world, start, redeem, ip=HOME)

    async def test_wrong_codes_of_strangers_are_no_attempts_of_the_owners(self, world: AuthWorld, kind: str) -> None:
        await owner(world, kind)
        start, redeem = conversation(world, kind)
        own = await start(ADA, ip=HOME)
        code = await newest_code(world)
        for _ in range(10):
            with suppress(AioRpcError):
                theirs = await start(ADA, ip=STRANGERS)
                for _ in range(6):
                    with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
                        await redeem(theirs, wrong(code))
            world.clock.advance(seconds=20)
        await redeem(own, code)


@pytest.mark.parametrize("kind", KINDS)
class TestStrangersInTheSameNetwork:
    """They look like the owner, unless the owner's device is known."""

    @pytest.mark.parametrize("times", [3, 10, 40])
    async def test_a_burst_costs_the_owner_nothing_and_the_mailbox_one_mail(
        self, world: AuthWorld, kind: str, times: int
    ) -> None:
        await owner(world, kind)
        start, redeem = conversation(world, kind)
        before = len(await world.told(events.CodeIssued))
        await flood(world, start, times=times, seconds=0.2, ip=HOME)
        assert len(await world.told(events.CodeIssued)) == before + 1
        await gets_in(world, start, redeem, ip=HOME)

    async def test_three_requests_a_minute_apart_keep_nobody_out(self, world: AuthWorld, kind: str) -> None:
        await owner(world, kind)
        start, redeem = conversation(world, kind)
        await flood(world, start, times=3, seconds=60, ip=HOME)
        await gets_in(world, start, redeem, ip=HOME)

    async def test_nobody_spends_the_attempts_of_who_came_first(self, world: AuthWorld, kind: str) -> None:
        await owner(world, kind)
        start, redeem = conversation(world, kind)
        own = await start(ADA, ip=HOME)
        code = await newest_code(world)
        for _ in range(4):
            theirs = await start(ADA, ip=HOME)
            assert theirs != own
            for _ in range(6):
                with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
                    await redeem(theirs, wrong(await newest_code(world)))
            world.clock.advance(seconds=5)
        await redeem(own, code)


@pytest.mark.parametrize("kind", OF_ACCOUNTS)
class TestKnownDevices:
    async def test_a_known_device_gets_in_whatever_strangers_ask_for(self, world: AuthWorld, kind: str) -> None:
        ada = await owner(world, kind)
        assert ada
        start, redeem = conversation(world, kind)
        for network in range(30):
            await flood(world, start, times=1, seconds=1200, ip=f"198.51.{network}.1")
        await flood(world, start, times=10, seconds=60, ip=HOME)
        for ip in (HOME, ELSEWHERE):
            with raises_status(StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CODES"):
                await start(ADA, ip=ip)
        await gets_in(world, start, redeem, ip=HOME, device_token=ada.device_token)

    async def test_somebody_elses_token_and_a_made_up_one_are_none(self, world: AuthWorld, kind: str) -> None:
        ada, bob = await owner(world, kind), await world.register(BOB)
        assert ada
        start, _ = conversation(world, kind)
        await flood(world, start, times=5, seconds=60, ip=HOME)
        world.clock.advance(minutes=10)
        tampered = ada.device_token[:-4] + "AAAA"
        for token in ("", "smd1_", "made up", "\N{SNOWMAN}", bob.device_token, tampered):
            with raises_status(StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CODES"):
                await start(ADA, ip=HOME, device_token=token)
        assert await start(ADA, ip=HOME, device_token=ada.device_token)

    async def test_a_known_device_is_bounded_too(self, world: AuthWorld, kind: str) -> None:
        ada = await owner(world, kind)
        assert ada
        start, _ = conversation(world, kind)
        before = len(await world.told(events.CodeIssued))
        for _ in range(30):
            with suppress(AioRpcError):
                await start(ADA, device_token=ada.device_token)
            world.clock.advance(seconds=61)
        assert len(await world.told(events.CodeIssued)) == before + 5


@pytest.mark.parametrize("kind", KINDS)
async def test_a_flood_from_many_networks_is_bounded_by_the_day(world: AuthWorld, kind: str) -> None:
    await owner(world, kind)
    start, _ = conversation(world, kind)
    before = len(await world.told(events.CodeIssued))
    for network in range(60):
        await flood(world, start, times=2, seconds=600, ip=f"2001:db8:{network:x}::1")
    assert len(await world.told(events.CodeIssued)) == before + 20


@pytest.mark.parametrize("kind", OF_ACCOUNTS)
async def test_a_redeemed_code_gives_its_budget_back(world: AuthWorld, kind: str) -> None:
    await owner(world, kind)
    start, redeem = conversation(world, kind)
    for _ in range(25):
        await gets_in(world, start, redeem, ip=HOME)


async def test_a_code_is_mailed_again_to_who_asks_again(world: AuthWorld) -> None:
    await world.register(ADA)
    first = await world.start_code(ADA)
    world.clock.advance(seconds=20)
    second = await world.start_code(ADA)
    assert first != second
    (mail,), (again,) = await world.mails(first), await world.mails(second)
    assert mail == again
    await world.complete_code(second, again.code)
    with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
        await world.complete_code(first, mail.code)


async def test_when_the_password_changes_in_between_the_code_is_another_one(world: AuthWorld) -> None:
    ada = await world.register(ADA)
    before = await world.start_reset(ADA)
    code = await world.code(before)
    await world.change_password(ada, NEW)
    world.clock.advance(seconds=20)
    after = await world.start_reset(ADA)
    assert await world.code(after) != code
    with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
        await world.complete_reset(after, code, "one more phrase, different again")
    await world.complete_reset(after, await world.code(after), "one more phrase, different again")


class TestRegistrations:
    async def test_who_shares_a_code_with_a_stranger_gets_their_own_account(self, world: AuthWorld) -> None:
        """A stranger in the same network registers the address first, with their own password."""
        strangers = await world.start(ADA, password="the stranger's password", username="stranger", ip=HOME)
        own = await world.start(ADA, username="ada", ip=HOME)
        assert own != strangers
        code = await newest_code(world)
        member = await world.complete(own, code)
        assert member.user.username == "ada"
        with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
            await world.complete(strangers, code)
        with raises_status(StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"):
            await world.sign_in(ADA, "the stranger's password")
        assert await world.sign_in(ADA, PASSWORD)

    async def test_a_flood_of_resends_keeps_nobody_out(self, world: AuthWorld) -> None:
        strangers = await world.start(ADA, ip=STRANGERS)
        for _ in range(40):
            for registration in (strangers, str(uuid4())):
                with suppress(AioRpcError):
                    await world.resend(registration, ip=STRANGERS)
            world.clock.advance(seconds=20)
        assert len(await world.mails(strangers)) == 5
        await gets_in(world, world.start, world.complete, ip=HOME)

    async def test_a_resend_at_once_mails_nothing_and_one_after_15_seconds_does(self, world: AuthWorld) -> None:
        registration = await world.start(ADA)
        ends_at = await world.resend(registration)
        assert len(await world.mails(registration)) == 1
        world.clock.advance(seconds=15)
        assert (await world.resend(registration) - ends_at).total_seconds() == pytest.approx(15, abs=0.01)
        assert len(await world.mails(registration)) == 2
        assert await world.complete(registration, await world.code(registration))

    async def test_resends_from_another_network_have_a_budget_of_their_own(self, world: AuthWorld) -> None:
        registration = await world.start(ADA, ip=HOME)
        for _ in range(4):
            world.clock.advance(seconds=15)
            await world.resend(registration, ip=HOME)
        world.clock.advance(seconds=15)
        with pytest.raises(AioRpcError) as raised:
            await world.resend(registration, ip=HOME)
        assert reason_of(raised.value) == "TOO_MANY_CODES"
        await world.resend(registration, ip=ELSEWHERE)
        assert await world.complete(registration, await world.code(registration))


async def test_a_redis_that_lost_everything_keeps_nobody_out(world: AuthWorld) -> None:
    await world.register(ADA)
    challenge = await world.start_code(ADA)
    code = await world.code(challenge)
    await world.redis.flushall()
    with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
        await world.complete_code(challenge, code)
    await gets_in(world, world.start_code, world.complete_code)
