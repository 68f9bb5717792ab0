"""Watching clients of many kinds: none of them misses a word, and none of them affects the others."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import UUID

import grpc
import httpx2
from grpc import StatusCode
from redis.asyncio import Redis
from storymesh.story.v1 import story_service_pb2 as pb
from storymesh.story.v1.story_service_pb2_grpc import StoryServiceStub

from kit.data.database import Database
from local.harness import RunningMesh
from tests.statuses import raises_status
from tests.story.pen import Pen, queued
from tests.system.conftest import Person, registered
from tests.system.ends import Reader, ended_once
from tests.system.sse import watched
from tests.waiting import until

WATCHES_PER_PERSON = 20
_FIRST_MESSAGE = re.compile(rb"^data: ?(\{.*\})\r?$", re.MULTILINE)
_STALLED = re.compile(
    r"^rpc_server_call_duration_seconds_count\{.*WatchStory.*RESOURCE_EXHAUSTED.*\} (\S+)$", re.MULTILINE
)
_CHUNKS, _HALF_CHUNK = 60, 25_000
"""Chunks that together are about twice as large as all buffers between the story service and a client that does not read."""
ONE_MESSAGE_MORE = 3
"""The most connections of one message each that a finished story takes after its last chunk: a resumption and the rest."""


async def test_a_client_that_reconnects_at_every_message_sees_every_word_once(
    mesh: RunningMesh, http: httpx2.AsyncClient, mesh_redis: Redis
) -> None:
    reader = Reader(await registered(mesh, http))
    follower = reader.follow(await reader.ask("one"))
    # The snapshot, which repeats the text that the client has, and one message more.
    await follower.to_the_end(at_most=2)
    assert len(follower.resumptions) > 5
    assert all(before == snapshot for before, snapshot in follower.resumptions)
    await ended_once(mesh, mesh_redis, reader)


async def test_a_client_that_reads_one_message_of_each_stream_gets_to_the_end(
    mesh: RunningMesh, http: httpx2.AsyncClient, mesh_redis: Redis
) -> None:
    reader = Reader(await registered(mesh, http))
    story_id = await reader.ask("one")
    follower = reader.follow(story_id)

    async def written() -> bool:
        await follower.connect(at_most=1)
        return bool((await reader.person.story(story_id))["state"] == "STORY_STATE_COMPLETED")

    await until(written, 60)
    assert len(set(follower.views)) > 3, "it did not see the story grow"
    for _ in range(ONE_MESSAGE_MORE):
        await follower.connect(at_most=1)
    await ended_once(mesh, mesh_redis, reader)


@asynccontextmanager
async def deaf_browser(mesh: RunningMesh, person: Person, story_id: str) -> AsyncIterator[str]:
    """Open a watch with the kernel's smallest receive window, read the first message, and yield its token."""
    loop = asyncio.get_running_loop()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        connection.setblocking(False)
        host, _, port = mesh.edge_address.partition(":")
        await loop.sock_connect(connection, (host, int(port)))
        lines = [
            f"GET /v1/stories/{story_id}:watch HTTP/1.1",
            "host: edge",
            f"authorization: {person.auth['authorization']}",
        ]
        await loop.sock_sendall(connection, "\r\n".join([*lines, "", ""]).encode())
        answer = b""
        async with asyncio.timeout(20):
            while not (found := _FIRST_MESSAGE.search(answer)):
                answer += await loop.sock_recv(connection, 512)
        yield str(json.loads(found[1])["resume_token"])


@asynccontextmanager
async def deaf_caller(
    mesh: RunningMesh, person: Person, story_id: str
) -> AsyncIterator[grpc.aio.UnaryStreamCall[pb.WatchStoryRequest, pb.WatchStoryResponse]]:
    """Open a watch as `deaf_browser` does, over native gRPC with a flow-control window that does not grow."""
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_535)]
    async with grpc.aio.insecure_channel(mesh.edge_address, options=options) as channel:
        metadata = tuple(person.auth.items())
        call = StoryServiceStub(channel).WatchStory(pb.WatchStoryRequest(story_id=story_id), metadata=metadata)
        await anext(aiter(call))
        yield call


async def stalled(mesh: RunningMesh) -> float:
    """Return the number of streams that the story service has ended because their clients did not read."""
    async with httpx2.AsyncClient() as client:
        numbers = (await client.get(f"http://{mesh.address('story-metrics')}/metrics")).text
    return sum(float(found) for found in _STALLED.findall(numbers))


async def test_clients_that_never_read_are_ended_and_felt_by_nobody(
    mesh: RunningMesh, http: httpx2.AsyncClient, mesh_redis: Redis
) -> None:
    person = await registered(mesh, http)
    before = await stalled(mesh)
    async with AsyncExitStack() as stack:
        db = Database(mesh.database_url("story"), pool=2)
        stack.push_async_callback(db.close)
        pen = Pen(db, mesh_redis, await queued(db, UUID(person.user["id"])))
        story_id = str(pen.story_id)
        await pen.begin()
        token = await stack.enter_async_context(deaf_browser(mesh, person, story_id))
        call = await stack.enter_async_context(deaf_caller(mesh, person, story_id))
        events = await stack.enter_async_context(watched(person, story_id))
        for number in range(_CHUNKS):
            await pen.add(f"{number:02}" * _HALF_CHUNK)
            while events.text != pen.text:
                assert await events.step()

        async def both_ended() -> bool:
            return await stalled(mesh) == before + 2

        await until(both_ended, 60)
        async with AsyncExitStack() as allowance:
            # With the one that reads: as many watches as one person may have, so both ended ones have been released.
            for _ in range(WATCHES_PER_PERSON - 1):
                more = await allowance.enter_async_context(watched(person, story_id))
                assert (await more.step(), more.text) == ("snapshot", pen.text)
        await pen.complete()
        assert (await events.until("done"))["done"]["story"]["text"] == events.text == pen.text
        async with watched(person, story_id, token) as late:
            assert (await late.step(), late.text) == ("snapshot", "")
            await late.until("done")
            assert late.text == pen.text
        with raises_status(StatusCode.RESOURCE_EXHAUSTED, "STREAM_STALLED"):
            async for _ in call:
                pass
