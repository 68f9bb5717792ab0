"""Dead letters and administrators' decisions about them, and recovery when Redis loses its data."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import httpx2
import psycopg
import pytest
from redis.asyncio import Redis
from storymesh.events.v1.auth_events_pb2 import UserDeleted
from storymesh.events.v1.story_events_pb2 import StoryCompleted, StoryRequested

from kit.events.envelope import Event
from kit.events.inbox_stream import stream_of
from local.harness import RunningMesh
from mesh.catalog import manifests
from mesh.manifest import INBOX
from tests.kit.events.test_inbox import event
from tests.system.conftest import Person, databases_of, mails_to, opened, registered
from tests.system.members import Member, body_of, signed_up
from tests.system.test_bad_input import fields
from tests.system.test_keys import made_admin
from tests.waiting import until

STORIES = 4


@pytest.fixture
async def admin(mesh: RunningMesh) -> AsyncIterator[Member]:
    async with opened(mesh, "http") as door:
        yield await made_admin(mesh, await signed_up(door, mesh))


async def put_aside(mesh: RunningMesh, redis: Redis, inbox: str, poison: Event) -> None:
    """Send a message that its handler cannot decode; wait for its dead letter."""
    service = inbox.partition("-")[0]
    await redis.xadd(stream_of(inbox), {"event": poison.to_bytes()})
    async with await psycopg.AsyncConnection.connect(databases_of(mesh)[service], autocommit=True) as connection:

        async def dead() -> bool:
            query = "SELECT 1 FROM dead_letters WHERE event_id = %s AND settled_at IS NULL"
            return bool(await (await connection.execute(query, [poison.id])).fetchall())

        await until(dead)


def poison(message: Any) -> Event:
    return event(type=message.DESCRIPTOR.full_name, key=str(uuid4()), payload=b"\xff")


async def listed(admin: Member, **query: Any) -> list[dict[str, Any]]:
    letters: list[dict[str, Any]] = (await admin.must("ListDeadLetters", **query))["dead_letters"]
    return letters


async def test_an_administrator_lists_replays_and_discards_what_nobody_could_handle(
    mesh: RunningMesh, mesh_redis: Redis, admin: Member
) -> None:
    of = {"story": poison(StoryRequested), "notification": poison(StoryCompleted)}
    for service, each in of.items():
        await put_aside(mesh, mesh_redis, service, each)
    found = {letter["event_id"]: letter for letter in await listed(admin)}
    for service, each in of.items():
        letter = found[str(each.id)]
        assert (letter["service"], letter["type"], letter["key"]) == (service, each.type, each.key)
        assert [one["event_id"] for one in await listed(admin, service=service)].count(str(each.id)) == 1
        request: dict[str, Any] = {"service": service, "event_ids": [str(each.id)], "reason": "seen to"}
        assert (await admin.must("ReplayDeadLetters", **request, dry_run=True))["dead_letters"] == [letter]
        assert (await admin.must("ReplayDeadLetters", **request))["dead_letters"] == [letter]

        async def dead_again(service: str = service, letter: dict[str, Any] = letter) -> bool:
            times = {one["event_id"]: one["die_time"] for one in await listed(admin, service=service)}
            return bool(times.get(letter["event_id"], letter["die_time"]) != letter["die_time"])

        await until(dead_again)
        assert len((await admin.must("DiscardDeadLetters", **request))["dead_letters"]) == 1
        assert (await admin.must("DiscardDeadLetters", **request))["dead_letters"] == []
        assert (await decision(mesh, service, each.id)) == ("DISCARDED", UUID(admin.user["id"]), "seen to")
        unknown = await admin.call("ReplayDeadLetters", **{**request, "event_ids": [str(uuid4())]})
        assert unknown.refusal == ("NOT_FOUND", "DEAD_LETTER_NOT_FOUND")
    assert not {letter["event_id"] for letter in await listed(admin)} & {str(each.id) for each in of.values()}


async def decision(mesh: RunningMesh, service: str, event_id: UUID) -> Any:
    async with await psycopg.AsyncConnection.connect(databases_of(mesh)[service]) as connection:
        query = "SELECT settlement, settled_by, settled_because FROM dead_letters WHERE event_id = %s"
        return await (await connection.execute(query, [event_id])).fetchone()


async def test_events_about_no_id_are_put_aside_at_once(mesh: RunningMesh, mesh_redis: Redis, admin: Member) -> None:
    """Retried eight times instead, they would take minutes to become dead letters."""
    of = {
        "story": StoryRequested(story_id="not-a-uuid"),
        "story-accounts": UserDeleted(user_id="not-a-uuid"),
        "notification": StoryCompleted(story_id=str(uuid4()), owner_id="not-a-uuid"),
    }
    for inbox, message in of.items():
        nobody = event(type=message.DESCRIPTOR.full_name, key=str(uuid4()), payload=message.SerializeToString())
        await put_aside(mesh, mesh_redis, inbox, nobody)
        service = inbox.partition("-")[0]
        (letter,) = [one for one in await listed(admin, service=service) if one["event_id"] == str(nobody.id)]
        assert (letter["failures"], letter["decisions"]) == (0, [])
        assert letter["reason"].endswith("is no UUID")


async def test_a_decision_is_shown_when_its_letter_has_died_again(
    mesh: RunningMesh, mesh_redis: Redis, admin: Member
) -> None:
    for service, message in (("story", StoryRequested), ("notification", StoryCompleted)):
        lost = poison(message)
        await put_aside(mesh, mesh_redis, service, lost)
        spellings = [str(lost.id), str(lost.id).upper()]
        request: dict[str, Any] = {"service": service, "event_ids": spellings, "reason": "perhaps now"}
        (replayed,) = (await admin.must("ReplayDeadLetters", **request))["dead_letters"]
        assert replayed["event_id"] == str(lost.id)

        async def decisions(service: str = service, lost: Event = lost) -> list[dict[str, Any]]:
            letters = [one for one in await listed(admin, service=service) if one["event_id"] == str(lost.id)]
            return [decision for letter in letters for decision in letter["decisions"]]

        (decision,) = await until(decisions)
        assert (decision["decision"], decision["actor"]) == ("SETTLEMENT_REPLAYED", admin.user["id"])
        assert decision["reason"] == "perhaps now"


async def test_every_service_that_takes_events_is_asked_by_its_name_and_no_other(
    mesh: RunningMesh, admin: Member
) -> None:
    takers = {name for name, manifest in manifests().items() if INBOX in manifest.kit_tables}
    for name in takers:
        assert {letter["service"] for letter in await listed(admin, service=name)} <= {name}
    request: dict[str, Any] = {"event_ids": [str(uuid4())], "reason": "mine"}
    for name in {*manifests(), "nobody", "Story"} - takers:
        refused = await admin.call("ListDeadLetters", service=name)
        assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", {"service"})
        refused = await admin.call("DiscardDeadLetters", service=name, **request)
        assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", {"service"})


async def test_a_reason_of_spaces_is_refused_with_its_name(http: httpx2.AsyncClient, admin: Member) -> None:
    request: dict[str, Any] = {"service": "story", "event_ids": [str(uuid4())], "reason": "   "}
    headers = {"authorization": f"Bearer {admin.access_token}"}
    for decision in ("replay", "discard"):
        answer = await http.post(f"/v1/admin/deadLetters:{decision}", json=request, headers=headers)
        assert (answer.status_code, fields(answer)) == (400, {"reason"})


async def test_nobody_else_may(mesh: RunningMesh, http: httpx2.AsyncClient) -> None:
    async with opened(mesh, "http") as web, opened(mesh, "grpc") as native:
        member = await signed_up(web, mesh)
        request: dict[str, Any] = {"service": "story", "event_ids": [str(uuid4())], "reason": "mine"}
        for door in (web, native):
            for token, code in ((member.access_token, "PERMISSION_DENIED"), ("", "UNAUTHENTICATED")):
                answers = [
                    await door.call("ListDeadLetters", token=token),
                    await door.call("ReplayDeadLetters", token=token, **request),
                    await door.call("DiscardDeadLetters", token=token, **request),
                ]
                assert [answer.code for answer in answers] == [code] * 3


async def test_without_the_story_service_the_rest_of_the_list_can_be_had(mesh: RunningMesh, admin: Member) -> None:
    await mesh.stop("story")
    try:
        refused = await admin.call("ListDeadLetters")
        assert refused.refusal == ("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE")
        assert refused.metadata == {"dependency": "story"}
        body_of(await admin.call("ListDeadLetters", service="notification"))
    finally:
        await mesh.start("story")

    async def well() -> bool:
        return (await admin.call("ListDeadLetters")).ok

    await until(well, 30)


async def test_when_redis_loses_everything_each_story_and_each_mail_still_comes_once(
    mesh: RunningMesh, http: httpx2.AsyncClient, mesh_redis: Redis
) -> None:
    """Redis loses its data while stories are requested, written and announced."""
    person = await registered(mesh, http)
    before = await person.new_story(length="STORY_LENGTH_SHORT")
    await person.finished(before["id"])
    await until(lambda: ready_mails(mesh, person) == 1, 30)
    asked = [await person.new_story(length="STORY_LENGTH_SHORT", request_id=f"lost-{n}") for n in range(STORIES)]
    await mesh_redis.flushall()
    asked.append(await person.new_story(length="STORY_LENGTH_SHORT", request_id="after"))
    for story in asked:
        assert (await person.finished(story["id"], 60))["state"] == "STORY_STATE_COMPLETED"
    await until(lambda: ready_mails(mesh, person) == len(asked) + 1, 30)
    await until(lambda: drained(mesh_redis), 60)
    assert ready_mails(mesh, person) == len(asked) + 1
    told = (await person.get("/v1/notifications", page_size=100)).json()["notifications"]
    assert [one["type"] for one in told].count("NOTIFICATION_TYPE_STORY_READY") == len(asked) + 1
    assert [one["type"] for one in told].count("NOTIFICATION_TYPE_WELCOME") == 1


def ready_mails(mesh: RunningMesh, person: Person) -> int:
    return len([mail for mail in mails_to(mesh.mail_dir, person.email) if "ready" in str(mail["Subject"])])


async def drained(redis: Redis) -> bool:
    async with redis.pipeline() as pipeline:
        for name in ("story", "story-accounts", "notification"):
            pipeline.xlen(stream_of(name))
        return not any(await pipeline.execute())
