"""One-time codes under attack, through both doors."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from redis.asyncio import Redis

from local.harness import RunningMesh
from tests.system.conftest import PASSWORD, code_for
from tests.system.doors import Door
from tests.system.members import WRONG_PASSWORD, at_once, begun, body_of, new_address, signed_up, wrong

INVALID = ("UNAUTHENTICATED", "CODE_INVALID")
NEW_PASSWORD = "another horse battery staple"


async def test_of_64_redemptions_of_one_code_at_once_one_wins(mesh: RunningMesh, door: Door) -> None:
    email = new_address()
    registration_id = await begun(door, email)
    code = await code_for(mesh.mail_dir, email)
    answers = await at_once(64, lambda _: door.call("CompleteRegistration", registration_id=registration_id, code=code))
    assert sorted(answer.ok for answer in answers) == [False] * 63 + [True]
    assert {answer.refusal for answer in answers if not answer.ok} == {INVALID}
    winner = next(answer for answer in answers if answer.ok)
    assert (await door.call("GetAccount", token=winner.body["tokens"]["access_token"])).ok


async def test_of_64_wrong_codes_at_once_five_are_looked_at(mesh: RunningMesh, door: Door, mesh_redis: Redis) -> None:
    email = new_address()
    registration_id = await begun(door, email)
    code = await code_for(mesh.mail_dir, email)
    answers = await at_once(
        64,
        lambda index: door.call(
            "CompleteRegistration", registration_id=registration_id, code=wrong(code, by=index + 1)
        ),
    )
    assert {answer.refusal for answer in answers} == {INVALID}
    (key,) = [key async for key in mesh_redis.scan_iter(match=f"codes:*:registration:{registration_id}")]
    assert await mesh_redis.hget(key, "attempts") == b"5"
    right = await door.call("CompleteRegistration", registration_id=registration_id, code=code)
    assert right.refusal == INVALID


async def test_a_new_code_brings_no_new_attempts(mesh: RunningMesh, door: Door) -> None:
    email = new_address()
    registration_id = await begun(door, email)
    first = await code_for(mesh.mail_dir, email)

    async def fails(code: str) -> None:
        answer = await door.call("CompleteRegistration", registration_id=registration_id, code=code)
        assert answer.refusal == INVALID

    for by in range(1, 4):
        await fails(wrong(first, by))
    body_of(await door.call("ResendRegistrationCode", registration_id=registration_id))
    second = await code_for(mesh.mail_dir, email, number=2)
    for by in range(1, 3):
        await fails(wrong(second, by))
    await fails(second)
    resent = await door.call("ResendRegistrationCode", registration_id=registration_id)
    assert resent.refusal == ("RESOURCE_EXHAUSTED", "CODE_ATTEMPTS_SPENT")


async def test_a_code_works_for_its_own_challenge_purpose_and_address_only(mesh: RunningMesh, door: Door) -> None:
    mine, theirs = await signed_up(door, mesh), await signed_up(door, mesh)
    sign_in = body_of(await door.call("StartSessionCode", email=mine.email))["challenge_id"]
    sign_in_code = await code_for(mesh.mail_dir, mine.email, 8)
    reset = body_of(await door.call("StartPasswordReset", email=mine.email))["challenge_id"]
    reset_code = await code_for(mesh.mail_dir, mine.email, 8, number=2)
    foreign = body_of(await door.call("StartSessionCode", email=theirs.email))["challenge_id"]

    async def refused(name: str, token: str = "", **answer: Any) -> None:
        assert (await door.call(name, token=token, **answer)).refusal == INVALID, (name, answer)

    for challenge_id, code in ((sign_in, reset_code), (foreign, sign_in_code), (reset, reset_code)):
        await refused("CompleteSessionCode", challenge_id=challenge_id, code=code)
    for challenge_id, code in ((reset, sign_in_code), (sign_in, sign_in_code)):
        await refused("CompletePasswordReset", challenge_id=challenge_id, code=code, new_password=NEW_PASSWORD)
    await refused("DeleteAccount", mine.access_token, challenge_id=reset, code=reset_code)
    await refused("DeleteAccount", theirs.access_token, challenge_id=sign_in, code=sign_in_code)
    await refused("CompleteEmailChange", mine.access_token, challenge_id=sign_in, code=sign_in_code)

    body_of(await door.call("CompleteSessionCode", challenge_id=sign_in, code=sign_in_code))
    await refused("CompleteSessionCode", challenge_id=sign_in, code=sign_in_code)
    body_of(await door.call("CompletePasswordReset", challenge_id=reset, code=reset_code, new_password=NEW_PASSWORD))


async def test_a_flood_of_challenges_does_not_cost_their_victim_the_code(mesh: RunningMesh, door: Door) -> None:
    victim = await signed_up(door, mesh)
    challenge_id = body_of(await door.call("StartSessionCode", email=victim.email))["challenge_id"]
    code = await code_for(mesh.mail_dir, victim.email, 8)
    flood = await at_once(20, lambda _: door.call("StartSessionCode", email=victim.email))
    assert {answer.refusal for answer in flood} == {("OK", ""), ("RESOURCE_EXHAUSTED", "TOO_MANY_CODES")}
    assert all(answer.retry_seconds for answer in flood if not answer.ok)
    for answer in flood:
        if answer.ok:
            burn = partial(door.call, "CompleteSessionCode", challenge_id=answer.body["challenge_id"])
            await asyncio.gather(*(burn(code=wrong(code, by)) for by in range(1, 7)))
    signed_in = body_of(await door.call("CompleteSessionCode", challenge_id=challenge_id, code=code))
    assert signed_in["user"] == victim.user


async def test_whoever_registers_an_address_first_gains_nothing_once_its_owner_does(
    mesh: RunningMesh, door: Door
) -> None:
    email = new_address()
    squat = await begun(door, email, password=WRONG_PASSWORD)
    squatters_code = await code_for(mesh.mail_dir, email)
    registration_id = await begun(door, email, password=PASSWORD)
    code = await code_for(mesh.mail_dir, email, number=2)
    crossed = await door.call("CompleteRegistration", registration_id=squat, code=code)
    assert crossed.refusal == INVALID
    body_of(await door.call("CompleteRegistration", registration_id=registration_id, code=code))
    late = await door.call("CompleteRegistration", registration_id=squat, code=squatters_code)
    assert late.refusal == INVALID
    squatter = await door.call("CreateSession", login=email, password=WRONG_PASSWORD)
    assert squatter.refusal == ("UNAUTHENTICATED", "INVALID_CREDENTIALS")
    body_of(await door.call("CreateSession", login=email, password=PASSWORD))
