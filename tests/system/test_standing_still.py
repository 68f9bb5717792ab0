"""Components that take calls and never answer: every call gets a reason in time, and none is half done."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from time import monotonic
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from kit.rpc.validation import validate
from local.harness import RunningMesh
from tests.standing_still import standing_still
from tests.system.doors import METHODS, Answer, Door
from tests.system.members import WRONG_PASSWORD, Member, new_address, signed_up
from tests.waiting import until

IN_TIME_SECONDS = 9.0
"""The time for the first calls, which detect it, on a busy machine: half of the edge's timeout."""
AT_ONCE_SECONDS = 3.0
UNARY = [method for method in METHODS.values() if not method.server_streaming]
ONLY_THERE: dict[str, dict[str, Any]] = {
    "CompleteRegistration": {"code": "123456"},
    "ExplainNotification": {"event_id": str(uuid4())},
    "ReportBounces": {"report": {"content_type": "application/json", "data": "e30="}},
    "CreateFile": {
        "purpose": "FILE_PURPOSE_DOCUMENT",
        "name": "page.txt",
        "size": 4,
        "media_type": "text/plain",
        "sha256": "0" * 64,
    },
    "CreateFileParts": {"parts": [{"number": 1, "sha256": "0" * 64}]},
    "SettleDelivery": {"state": "DELIVERY_STATE_SENT"},
}
WITHOUT_REDIS = ("GetAccount", "ListSessions", "ListStories", "ListNotifications", "UpdateAccount")


def values(member: Member, story_id: str) -> Mapping[str, Any]:
    """Values of request fields by name. A method with a further required field needs an entry here."""
    return {
        "story_id": story_id,
        "registration_id": str(uuid4()),
        "session_id": str(uuid4()),
        "challenge_id": str(uuid4()),
        "code": "12345678",
        "email": new_address(),
        "new_email": new_address(),
        "login": member.email,
        "password": WRONG_PASSWORD,
        "current_password": WRONG_PASSWORD,
        "new_password": "a lighthouse keeper's umbrella",
        "refresh_token": member.refresh_token,
        "stop_token": "x" * 43,
        "first_name": "Ada",
        "kid": "x" * 43,
        "notification_id": str(uuid4()),
        "file_id": str(uuid4()),
        "webhook_id": str(uuid4()),
        "user_id": str(uuid4()),
        "user_ids": [str(uuid4())],
        "handle": "nobody_there",
        "url": "https://hooks.example.com/",
        "service": "story",
        "event_ids": [str(uuid4())],
        "delivery_id": str(uuid4()),
        "suppression_id": str(uuid4()),
        "override_id": str(uuid4()),
        "rules": "domain: storymesh",
        "expire_time": "2100-01-01T00:00:00Z",
        "subject": {"client_address": "192.0.2.7"},
        "reason": "because a test wants it",
    }


def request_of(method: MethodDescriptor, known: Mapping[str, Any]) -> dict[str, Any]:
    known = {**known, **ONLY_THERE.get(method.name, {})}
    request = {field.name: known[field.name] for field in method.input_type.fields if field.name in known}
    validate(json_format.ParseDict(request, GetMessageClass(method.input_type)()))
    return request


async def timed(member: Member, name: str, known: Mapping[str, Any]) -> tuple[str, Answer, float]:
    begun = monotonic()
    answer = await member.call(name, **request_of(METHODS[name], known))
    return name, answer, monotonic() - begun


async def every_call(member: Member, known: Mapping[str, Any], within: float) -> dict[str, Answer]:
    """Call every method concurrently; check that each gets an answer with a reason in time, and return the answers."""
    answers = await asyncio.gather(*(timed(member, method.name, known) for method in UNARY))
    mute = [
        (name, answer.code, seconds)
        for name, answer, seconds in answers
        if answer.code in ("DEADLINE_EXCEEDED", "INTERNAL", "UNKNOWN") or not (answer.ok or answer.reason)
    ]
    assert mute == []
    assert [(name, seconds) for name, _, seconds in answers if seconds > within] == []
    return {name: answer for name, answer, _ in answers}


async def begun_story(member: Member) -> str:
    return str((await member.must("CreateStory", length="STORY_LENGTH_SHORT"))["story"]["id"])


async def works(member: Member) -> bool:
    calls = [await member.call(name) for name in ("GetAccount", "ListStories", "ListNotifications")]
    calls.append(await member.call("StartSessionCode", email=new_address()))
    return all(each.ok for each in calls) and (await member.call("CreateStory", length="STORY_LENGTH_SHORT")).ok


@pytest.mark.parametrize("server", ["postgres", "redis"])
async def test_while_a_server_stands_still_every_call_is_answered_with_a_reason(
    mesh: RunningMesh, door: Door, server: str
) -> None:
    member, bystander = await signed_up(door, mesh), await signed_up(door, mesh)
    known = values(member, await begun_story(member))
    with standing_still(mesh, server):
        if server == "redis":
            answers = [await timed(member, name, known) for name in WITHOUT_REDIS]
            assert [(name, answer) for name, answer, _ in answers if not answer.ok] == []
        for within in (IN_TIME_SECONDS, AT_ONCE_SECONDS):
            await every_call(member, known, within)
            if server == "redis":
                # One of the calls may have ended the session.
                continue
            refusals = {
                (await member.call(name)).refusal for name in ("GetAccount", "ListStories", "ListNotifications")
            }
            assert refusals <= {("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE"), ("UNAVAILABLE", "SERVICE_UNAVAILABLE")}
        async with httpx2.AsyncClient(base_url=mesh.edge_url, timeout=20) as client:
            bearer = {"authorization": f"Bearer {member.access_token}"}
            watch = await client.get(f"/v1/stories/{known['story_id']}:watch", headers=bearer)
            assert server == "redis" or (watch.status_code == 503 and watch.json()["details"][0]["reason"])
    await until(lambda: works(bystander), 40)


async def test_while_auth_stands_still_what_needs_it_is_refused_with_a_reason_and_the_rest_goes_on(
    mesh: RunningMesh, door: Door
) -> None:
    member = await signed_up(door, mesh)
    known = values(member, await begun_story(member))
    with standing_still(mesh, "auth"):
        for within in (IN_TIME_SECONDS, AT_ONCE_SECONDS):
            answers = await every_call(member, known, within)
            assert answers["GetAccount"].code == answers["CreateStory"].code == "UNAVAILABLE"
            assert answers["ListStories"].ok
            assert answers["ListNotifications"].ok
    await until(lambda: works(member), 40)
