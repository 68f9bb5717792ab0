"""Refresh rotation, through both doors: tokens used concurrently, again, too late, or while their session ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from local.harness import RunningMesh
from tests.system.conftest import mails_to
from tests.system.doors import Answer, Door
from tests.system.members import Member, at_once, body_of, ends, signed_up
from tests.waiting import until

REUSED = ("UNAUTHENTICATED", "REFRESH_REUSED")
REVOKED = ("UNAUTHENTICATED", "SESSION_REVOKED")
NEW_PASSWORD = "another horse battery staple"


async def refresh(member: Member, token: str = "") -> Answer:
    return await member.door.call("RefreshSession", refresh_token=token or member.refresh_token)


async def test_100_refreshes_of_one_token_at_once_make_one_successor(mesh: RunningMesh, door: Door) -> None:
    member = await signed_up(door, mesh)
    answers = await at_once(100, lambda _: refresh(member))
    successors = {answer.body["tokens"]["refresh_token"] for answer in answers if answer.ok}
    assert len(successors) == 1
    # The first use, and as many retries as count as lost answers.
    assert sum(answer.ok for answer in answers) == 11
    assert {answer.refusal for answer in answers if not answer.ok} == {REUSED}
    body_of(await refresh(member, successors.pop()))


async def test_a_retry_after_a_lost_answer_gets_the_same_successor(mesh: RunningMesh, door: Door) -> None:
    member = await signed_up(door, mesh)
    first, again = [body_of(await refresh(member))["tokens"] for _ in range(2)]
    assert first["refresh_token"] == again["refresh_token"]
    assert (await door.call("GetAccount", token=again["access_token"])).ok


async def test_a_token_two_behind_ends_the_session_of_thief_and_owner_and_tells_the_owner(
    mesh: RunningMesh, door: Door
) -> None:
    member = await signed_up(door, mesh)
    other = await member.on_another_device()
    second = body_of(await refresh(member))["tokens"]
    third = body_of(await refresh(member, second["refresh_token"]))["tokens"]
    assert (await refresh(member)).refusal == REUSED
    assert (await refresh(member, third["refresh_token"])).refusal == REVOKED
    for name in ("GetAccount", "ListStories", "ListNotifications"):
        await ends(partial(door.call, name, token=third["access_token"]), REVOKED)
    assert (await other.call("GetAccount")).ok

    def told() -> bool:
        subjects = [str(mail["Subject"]) for mail in mails_to(mesh.mail_dir, member.email)]
        return "A device was signed out of Storymesh" in subjects

    await until(told)


ENDINGS: dict[str, Callable[[Member], tuple[str, dict[str, Any]]]] = {
    "logging out": lambda _: ("Logout", {}),
    "another device's new password": lambda member: (
        "ChangePassword",
        {"current_password": member.password, "new_password": NEW_PASSWORD},
    ),
    "deletion": lambda member: ("DeleteAccount", {"password": member.password}),
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS.keys())
async def test_no_token_outlives_its_session_that_is_refreshed_while_it_ends(
    mesh: RunningMesh, door: Door, ending: Callable[[Member], tuple[str, dict[str, Any]]]
) -> None:
    member = await signed_up(door, mesh)
    name, request = ending(member)
    # A change of the password does not end the session that makes it.
    caller = await member.on_another_device() if name == "ChangePassword" else member
    *refreshed, ended = await asyncio.gather(*(refresh(member) for _ in range(6)), caller.call(name, **request))
    assert ended.ok
    assert {answer.code for answer in refreshed} <= {"OK", "UNAUTHENTICATED"}
    tokens = [member.tokens, *(answer.body["tokens"] for answer in refreshed if answer.ok)]
    for each in tokens:
        assert (await refresh(member, each["refresh_token"])).code == "UNAUTHENTICATED"
    for service in ("GetAccount", "ListStories", "ListNotifications"):
        for each in tokens:
            await ends(partial(door.call, service, token=each["access_token"]), REVOKED)
