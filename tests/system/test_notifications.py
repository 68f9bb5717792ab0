"""Notifications through the edge: both protocols change and watch the same list."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import httpx2
from storymesh.notification.v1 import notification_service_pb2 as pb
from storymesh.notification.v1.notification_service_pb2_grpc import NotificationServiceStub

from local.harness import RunningMesh
from tests.system.conftest import Person, registered
from tests.system.doors import Door
from tests.system.members import body_of, signed_up
from tests.system.test_event_source import EventSource
from tests.waiting import until

WATCH = "/v1/notifications:watch"


@asynccontextmanager
async def events(person: Person, **query: str) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """Open the watch as server-sent events during the block."""
    async with person.http.stream("GET", WATCH, params=query, headers=person.auth, timeout=40) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")

        async def read() -> AsyncIterator[dict[str, Any]]:
            async for line in response.aiter_lines():
                if line.startswith("data:") and "heartbeat" not in (message := json.loads(line.removeprefix("data:"))):
                    yield message

        yield read()


async def test_what_is_done_by_one_protocol_is_told_by_the_other(mesh: RunningMesh, http: httpx2.AsyncClient) -> None:
    person = await registered(mesh, http)
    await until(lambda: welcomed(person))
    listed = (await person.get("/v1/notifications")).json()
    assert listed["unread_count"] == 1
    (welcome,) = listed["notifications"]
    assert welcome["target"] == {"type": "TARGET_TYPE_ACCOUNT", "id": person.user["id"]}
    assert (welcome["actors"], welcome["actor_count"], "read_time" in welcome) == ([], 0, False)

    async with grpc.aio.insecure_channel(mesh.edge_address) as channel:
        stub, auth = NotificationServiceStub(channel), tuple(person.auth.items())
        call = stub.WatchNotifications(pb.WatchNotificationsRequest(), metadata=auth)
        native = aiter(call)
        assert (await anext(native)).HasField("snapshot")
        async with events(person, resume_token=listed["resume_token"]) as sse:
            await stub.MarkNotificationRead(
                pb.MarkNotificationReadRequest(notification_id=welcome["id"]), metadata=auth
            )
            read = await anext(sse)
            assert (read["read"]["notification_id"], read["unread_count"]) == (welcome["id"], 0)
            assert (await next_change(native)).read.notification_id == welcome["id"]

            story = await person.new_story(length="STORY_LENGTH_SHORT")
            added = (await anext(sse))["added"]["notification"]
            assert (added["type"], added["story_id"]) == ("NOTIFICATION_TYPE_STORY_READY", story["id"])
            assert added["target"] == {"type": "TARGET_TYPE_STORY", "id": story["id"]}
            assert "Hello" not in added["body"]
            assert (await next_change(native)).added.notification.id == added["id"]
            assert (await person.get("/v1/notifications:countUnread")).json() == {"unread_count": 1}
            assert (await person.post("/v1/notifications:markAllRead")).json() == {"marked_count": 1}
            assert (await anext(sse))["all_read"]["read_time"]

            gone = await person.http.delete(f"/v1/notifications/{added['id']}", headers=person.auth)
            assert gone.json() == {"unread_count": 0}
            deleted = await anext(sse)
            assert deleted["deleted"] == {"notification_id": added["id"]}
        assert (await next_change(native)).HasField("all_read")
        assert (await next_change(native)).deleted.notification_id == added["id"]
        call.cancel()
    refused = await person.get(WATCH, resume_token="x")
    assert (refused.status_code, refused.json()["details"][0]["reason"]) == (400, "INVALID_ARGUMENT")


async def welcomed(person: Person) -> bool:
    return bool((await person.get("/v1/notifications")).json()["notifications"])


async def next_change(messages: AsyncIterator[pb.WatchNotificationsResponse]) -> pb.WatchNotificationsResponse:
    while (message := await anext(messages)).HasField("heartbeat"):
        pass
    return message


async def test_an_event_source_is_told_of_each_change_once_over_broken_connections(
    mesh: RunningMesh, http: httpx2.AsyncClient
) -> None:
    person = await registered(mesh, http)
    await until(lambda: welcomed(person))
    source = EventSource(person, WATCH)
    await source.connect(at_most=1)
    stories = [(await person.new_story(length="STORY_LENGTH_SHORT"))["id"] for _ in range(3)]

    async def told() -> list[str]:
        await source.connect(at_most=1)
        added = [event["added"]["notification"]["story_id"] for event in source.events if "added" in event]
        return added if len(added) >= len(stories) else []

    assert sorted(await until(told, 60)) == sorted(stories)
    assert [event for event in source.events if "snapshot" in event] == source.events[:1]


async def test_both_doors_change_and_refuse_alike(mesh: RunningMesh, door: Door) -> None:
    member = await signed_up(door, mesh)

    async def notifications() -> list[dict[str, Any]]:
        return list(
            (await member.must("ListNotifications", unread=True, type="NOTIFICATION_TYPE_WELCOME"))["notifications"]
        )

    (welcome,) = await until(notifications)
    other = await signed_up(door, mesh)
    for name in ("MarkNotificationRead", "DeleteNotification"):
        refusal = await other.call(name, notification_id=welcome["id"])
        assert refusal.refusal == ("NOT_FOUND", "NOTIFICATION_NOT_FOUND")
    read = body_of(await member.call("MarkNotificationRead", notification_id=welcome["id"]))
    assert (read["unread_count"], read["notification"]["id"]) == (0, welcome["id"])
    assert await notifications() == []
    assert (await member.must("MarkAllNotificationsRead"))["marked_count"] == 0
    assert (await member.must("CountUnreadNotifications"))["unread_count"] == 0
    assert (await member.must("DeleteNotification", notification_id=welcome["id"]))["unread_count"] == 0
    assert (await member.must("ListNotifications"))["notifications"] == []
