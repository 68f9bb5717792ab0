"""Revocation: within two seconds of a session's end, its access token and its open streams end everywhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import grpc
import httpx2
import pytest
from grpc.aio import AioRpcError
from storymesh.story.v1 import story_service_pb2 as story
from storymesh.story.v1.story_service_pb2_grpc import StoryServiceStub

from local.harness import RunningMesh
from tests.identity import bearer
from tests.statuses import reason_of
from tests.system.doors import Door
from tests.system.members import Member, ends, signed_up
from tests.system.sse import Events

REVOKED = ("UNAUTHENTICATED", "SESSION_REVOKED")
READS = ("GetAccount", "ListStories", "ListNotifications")
"""One read of each service."""
WITHIN_SECONDS = 2.0
REVOCATIONS = 16
"""Revocations through each door."""


async def test_each_of_many_revocations_holds_everywhere_within_two_seconds(mesh: RunningMesh, door: Door) -> None:
    owner = await signed_up(door, mesh)
    devices = [await owner.on_another_device() for _ in range(REVOCATIONS)]
    listed = await owner.must("ListSessions", page_size=100)
    session_ids = [each["id"] for each in listed["sessions"] if not each["current"]]
    assert len(session_ids) == REVOCATIONS
    # Sessions come newest first.
    for device, session_id in zip(reversed(devices), session_ids, strict=True):
        await owner.must("RevokeSession", session_id=session_id)
        await ended_everywhere(device)
    for name in READS:
        await owner.must(name)


async def ended_everywhere(device: Member) -> None:
    await asyncio.gather(*(ends(partial(device.call, name), REVOKED, WITHIN_SECONDS) for name in READS))


async def log_out(device: Member, _owner: Member) -> None:
    await device.must("Logout")


async def revoke_others(_device: Member, owner: Member) -> None:
    await owner.must("RevokeOtherSessions")


async def change_password(_device: Member, owner: Member) -> None:
    await owner.must("ChangePassword", current_password=owner.password, new_password="another horse battery staple")
    owner.password = "another horse battery staple"


async def delete_account(_device: Member, owner: Member) -> None:
    await owner.must("DeleteAccount", password=owner.password)


@pytest.mark.parametrize("end", [log_out, revoke_others, change_password, delete_account])
async def test_what_a_session_has_opened_ends_with_it(
    mesh: RunningMesh, door: Door, end: Callable[[Member, Member], Awaitable[None]]
) -> None:
    owner = await signed_up(door, mesh)
    device = await owner.on_another_device()
    story_id = (await device.must("CreateStory", length="STORY_LENGTH_LONG"))["story"]["id"]
    async with browser(mesh, device, story_id) as events, native(mesh, device, story_id) as messages:
        assert await events.until("chunk")
        await anext(messages)
        await end(device, owner)
        async with asyncio.timeout(WITHIN_SECONDS):
            assert await events.until("done") == {}
            with pytest.raises(AioRpcError) as raised:
                await drained(messages)
    assert (raised.value.code(), reason_of(raised.value)) == (grpc.StatusCode.UNAUTHENTICATED, "SESSION_REVOKED")
    await ended_everywhere(device)
    if end is not delete_account:
        # Delete the story, so that no worker goes on writing it.
        await owner.must("DeleteAccount", password=owner.password)


async def drained(messages: AsyncIterator[story.WatchStoryResponse]) -> None:
    async for message in messages:
        assert message.WhichOneof("event") != "done"


@asynccontextmanager
async def browser(mesh: RunningMesh, member: Member, story_id: str) -> AsyncIterator[Events]:
    headers = {"authorization": f"Bearer {member.access_token}"}
    async with (
        httpx2.AsyncClient(base_url=mesh.edge_url, timeout=20) as http,
        http.stream("GET", f"/v1/stories/{story_id}:watch", headers=headers) as response,
    ):
        yield Events(response.aiter_lines())


@asynccontextmanager
async def native(
    mesh: RunningMesh, member: Member, story_id: str
) -> AsyncIterator[AsyncIterator[story.WatchStoryResponse]]:
    async with grpc.aio.insecure_channel(mesh.edge_address) as channel:
        request = story.WatchStoryRequest(story_id=story_id)
        yield aiter(StoryServiceStub(channel).WatchStory(request, metadata=bearer(member.access_token)))
