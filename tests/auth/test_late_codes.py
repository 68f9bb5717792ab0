"""Codes whose mails come late: the newest of a challenge is good until the very end of its time, whatever its kind."""

from __future__ import annotations

import pytest
from grpc import StatusCode

from tests.auth.conftest import AuthWorld
from tests.auth.test_code_budgets import ADA, conversation, owner
from tests.statuses import raises_status

LIVES = {"registration": 600, "sign-in": 300, "reset": 600}


@pytest.mark.parametrize("kind", LIVES)
async def test_a_code_works_until_the_last_second_of_its_time(world: AuthWorld, kind: str) -> None:
    await owner(world, kind)
    start, redeem = conversation(world, kind)
    challenge = await start(ADA)
    world.clock.advance(seconds=LIVES[kind] - 1)
    await redeem(challenge, await world.code(challenge))


async def test_a_resent_code_voids_the_former_one_and_has_the_whole_of_its_own_time(world: AuthWorld) -> None:
    registration = await world.start(ADA)
    former = await world.code(registration)
    world.clock.advance(seconds=90)
    await world.resend(registration)
    newest = await world.code(registration)
    world.clock.advance(seconds=LIVES["registration"] - 1)
    with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
        await world.complete(registration, former)
    assert await world.complete(registration, newest)


@pytest.mark.parametrize("kind", ["sign-in", "reset"])
async def test_who_asks_again_after_a_minute_has_two_codes_each_good_for_its_own_challenge(
    world: AuthWorld, kind: str
) -> None:
    await owner(world, kind)
    start, redeem = conversation(world, kind)
    former = await start(ADA)
    world.clock.advance(seconds=90)
    later = await start(ADA)
    codes = await world.code(former), await world.code(later)
    assert codes[0] != codes[1]
    with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
        await redeem(later, codes[0])
    await redeem(former, codes[0])
