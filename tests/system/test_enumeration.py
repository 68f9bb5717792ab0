"""Account enumeration: calls about an address with and without an account get the same answers, the first and every later one."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from local.harness import RunningMesh
from tests.system.doors import Answer, Door
from tests.system.members import WRONG_PASSWORD, Member, begun, body_of, new_address, signed_up

# Random values and times, whose form is the same for all callers.
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")
_DELAY = re.compile(r'"retry_delay": ?"[\d.]+s"')
# Headers of which only the presence is compared: ids, times, and the limiter's counters of this machine.
_VOLATILE = {
    "content-length",
    "date",
    "ratelimit",
    "retry-after",
    "x-envoy-upstream-service-time",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
    "x-request-id",
    "x-trace-id",
}

CALLS = 7
"""Enough calls to reach every limit on codes and sign-ins."""


def shown(answer: Answer) -> tuple[object, ...]:
    """Return the whole answer without random values."""
    text = answer.text
    for pattern in (_UUID, _TIME, _DELAY):
        text = pattern.sub("*", text)
    headers = {name: "*" if name in _VOLATILE else value for name, value in answer.headers.items()}
    return answer.code, answer.http_status, text, tuple(headers.items())


async def alike(call: Callable[[str], Awaitable[Answer]], *subjects: str) -> list[Answer]:
    """Assert that all subjects get the same answers, call by call; return those of the first."""
    told = []
    for _ in range(CALLS):
        answers = [await call(subject) for subject in subjects]
        for answer in answers[1:]:
            assert shown(answer) == shown(answers[0])
        told.append(answers[0])
    return told


@pytest.fixture
async def member(mesh: RunningMesh, door: Door, unknown_network: None) -> Member:
    return await signed_up(door, mesh)


async def test_registering_and_redeeming(door: Door, member: Member) -> None:
    stranger = new_address()
    known, unknown = await begun(door, member.email), await begun(door, stranger)
    told = await alike(
        lambda each: door.call("CompleteRegistration", registration_id=each, code="000000"), known, unknown
    )
    assert {answer.reason for answer in told} == {"CODE_INVALID"}
    told = await alike(lambda each: door.call("ResendRegistrationCode", registration_id=each), known, unknown)
    assert told[-1].reason == "CODE_ATTEMPTS_SPENT"
    told = await alike(
        lambda each: door.call("CreateRegistration", email=each, password=WRONG_PASSWORD), member.email, stranger
    )
    assert (told[0].reason, told[-1].reason) == ("", "TOO_MANY_CODES")


async def test_a_taken_username_is_told_to_nobody_who_has_proven_no_address(mesh: RunningMesh, door: Door) -> None:
    taken = new_address().partition("@")[0]
    await signed_up(door, mesh, username=taken)
    free = new_address().partition("@")[0]
    for each in (taken, free):
        body_of(await door.call("CreateRegistration", email=new_address(), password=WRONG_PASSWORD, username=each))


async def test_signing_in(door: Door, member: Member) -> None:
    username, nobodys = (new_address().partition("@")[0] for _ in range(2))
    await member.must("UpdateAccount", username=username)
    for known, unknown in ((member.email, new_address()), (username, nobodys)):
        assert await until_slowed_down(door, known) == await until_slowed_down(door, unknown)


async def until_slowed_down(door: Door, login: str) -> list[tuple[object, ...]]:
    """Return the distinct answers: on a busy machine a wait of a second may be over before the next call."""
    told: list[Answer] = []
    while not told or told[-1].reason != "TOO_MANY_SIGN_INS":
        told.append(await door.call("CreateSession", login=login, password=WRONG_PASSWORD))
        assert len(told) < 12
    assert {answer.reason for answer in told[:5]} == {"INVALID_CREDENTIALS"}
    assert told[-1].retry_seconds
    return list(dict.fromkeys(map(shown, told)))


@pytest.mark.parametrize(
    ("start", "complete", "more"),
    [
        ("StartSessionCode", "CompleteSessionCode", {}),
        ("StartPasswordReset", "CompletePasswordReset", {"new_password": "another horse battery staple"}),
    ],
)
async def test_asking_for_a_code_and_redeeming_it(
    door: Door, member: Member, start: str, complete: str, more: dict[str, Any]
) -> None:
    stranger = new_address()
    challenges = [body_of(await door.call(start, email=each))["challenge_id"] for each in (member.email, stranger)]
    told = await alike(lambda each: door.call(complete, challenge_id=each, code="00000000", **more), *challenges)
    assert {answer.reason for answer in told} == {"CODE_INVALID"}
    told = await alike(lambda each: door.call(start, email=each), member.email, stranger)
    assert (told[0].reason, told[-1].reason) == ("", "TOO_MANY_CODES")


async def test_moving_to_an_address(mesh: RunningMesh, door: Door, member: Member) -> None:
    movers = {member.email: await signed_up(door, mesh), new_address(): await signed_up(door, mesh)}

    async def move(to: str) -> Answer:
        return await movers[to].call("StartEmailChange", new_email=to, password=movers[to].password)

    told = await alike(move, *movers)
    assert (told[0].reason, told[-1].reason) == ("", "TOO_MANY_CODES")
