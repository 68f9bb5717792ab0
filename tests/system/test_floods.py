"""A flood of guesses from one network: claims of other addresses do not help it, and other people can still sign in."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

from local.harness import RunningMesh
from tests.system.conftest import FAILURES_PER_NETWORK
from tests.system.doors import Answer, Door
from tests.system.members import WRONG_PASSWORD, Member, at_once, body_of, signed_up

GUESSERS = 10
GUESSES_EACH = 6
WRONG = ("UNAUTHENTICATED", "INVALID_CREDENTIALS")
TOO_MANY = ("RESOURCE_EXHAUSTED", "TOO_MANY_SIGN_INS")
BUSY = ("RESOURCE_EXHAUSTED", "OVERLOADED")


async def guess(door: Door, number: int) -> Answer:
    """Guess a password for a new login, from a claimed address."""
    claimed = {"x-forwarded-for": f"203.0.113.{number % 250}, 198.51.100.{number % 250}"}
    return await door.call("CreateSession", headers=claimed, login=f"nobody-{uuid4().hex}", password=WRONG_PASSWORD)


async def test_a_flood_of_guesses_is_bounded_whatever_address_it_claims_and_others_go_on(
    mesh: RunningMesh, door: Door, unknown_network: None
) -> None:
    member = await signed_up(door, mesh)
    served: list[Answer] = []
    over = asyncio.Event()

    async def use() -> None:
        while not over.is_set():
            served.extend([await member.call(name) for name in ("GetAccount", "ListStories", "ListNotifications")])
            tokens = await door.call("RefreshSession", refresh_token=member.refresh_token)
            served.append(tokens)
            member.tokens = tokens.body.get("tokens", member.tokens)

    async def guesser(number: int) -> list[Answer]:
        return [await guess(door, number * GUESSES_EACH + each) for each in range(GUESSES_EACH)]

    async with asyncio.TaskGroup() as group:
        group.create_task(use())
        guessers = [group.create_task(guesser(number)) for number in range(GUESSERS)]
        await asyncio.wait(guessers)
        over.set()
    guesses = [answer for each in guessers for answer in each.result()]
    assert {answer.refusal for answer in guesses} <= {WRONG, TOO_MANY, BUSY}
    assert sum(answer.refusal == WRONG for answer in guesses) <= FAILURES_PER_NETWORK
    assert all(answer.retry_seconds for answer in guesses if answer.code == "RESOURCE_EXHAUSTED")
    assert served
    assert {answer.code for answer in served} == {"OK"}

    while (last := await guess(door, 0)).refusal != TOO_MANY:
        assert last.refusal in (WRONG, BUSY)
    assert {answer.refusal for answer in await at_once(5, lambda each: guess(door, 100 + each))} == {TOO_MANY}
    assert (await by_password(member)).refusal == TOO_MANY
    # A device that has signed in before is not locked out by others' guesses.
    body_of(await by_password(member, device_token=member.device_token))


async def by_password(member: Member, **more: Any) -> Answer:
    return await member.door.call("CreateSession", login=member.email, password=member.password, **more)


async def test_the_session_list_shows_the_address_that_the_edge_saw(mesh: RunningMesh, door: Door) -> None:
    member = await signed_up(door, mesh)
    claims = {"x-forwarded-for": "203.0.113.7", "x-real-ip": "203.0.113.7", "x-envoy-external-address": "203.0.113.7"}
    body_of(
        await door.call(
            "CreateSession", headers=claims, login=member.email, password=member.password, device_name="spoofing"
        )
    )
    body_of(await door.call("RefreshSession", headers=claims, refresh_token=member.refresh_token))
    honest = await member.on_another_device()
    sessions = (await honest.must("ListSessions"))["sessions"]
    (seen,) = [each["ip"] for each in sessions if each["current"]]
    assert [each["ip"] for each in sessions] == [seen] * 3
    assert seen != "203.0.113.7"
    assert "spoofing" in {each["device_name"] for each in sessions}
