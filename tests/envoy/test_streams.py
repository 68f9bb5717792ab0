"""Server-sent events and their native form."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import httpx
from storymesh.story.v1 import story_service_pb2 as story
from storymesh.story.v1 import story_service_pb2_grpc as story_grpc

from tests.envoy.conftest import Edge, Mesh, until
from tests.envoy.statuses import reason


async def events(answer: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in answer.aiter_lines():
        if line.startswith("data:"):
            yield json.loads(line.removeprefix("data:"))


async def test_a_watch_is_a_stream_of_events_that_arrive_one_by_one(ada: httpx.AsyncClient, mesh: Mesh) -> None:
    mesh.story.chunks.put_nowait("once")
    async with ada.stream("GET", "/v1/stories/s1:watch", params={"resume_token": "t"}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.headers["cache-control"] == "no-store"
        received = events(answer)
        assert await anext(received) == {"resume_token": "once", "chunk": {"text": "once"}}
        mesh.story.chunks.put_nowait("upon")
        assert await anext(received) == {"resume_token": "upon", "chunk": {"text": "upon"}}
        mesh.story.chunks.put_nowait(None)
        assert [event async for event in received] == []
    assert mesh.calls.last.request == story.WatchStoryRequest(story_id="s1", resume_token="t")


async def test_a_stream_outlives_the_timeout_of_a_whole_answer(ada: httpx.AsyncClient, mesh: Mesh) -> None:
    mesh.story.chunks.put_nowait("beginning")
    async with ada.stream("GET", "/v1/stories/s1:watch") as answer:
        received = events(answer)
        await anext(received)
        await asyncio.sleep(1.5)  # this edge waits for 1 s for a whole answer
        mesh.story.chunks.put_nowait("end")
        assert (await anext(received))["chunk"] == {"text": "end"}


async def test_a_stream_is_native_over_grpc(
    channel: grpc.aio.Channel, credentials: tuple[tuple[str, str]], mesh: Mesh
) -> None:
    for word in ("once", "upon", None):
        mesh.story.chunks.put_nowait(word)
    stub = story_grpc.StoryServiceStub(channel)
    watch = stub.WatchStory(story.WatchStoryRequest(story_id="s1"), metadata=credentials)
    assert [message.chunk.text async for message in watch] == ["once", "upon"]


async def test_a_refusal_before_the_first_event_is_a_json_error(ada: httpx.AsyncClient, mesh: Mesh) -> None:
    async def refuse(_request: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such story")

    mesh.calls.instead["WatchStory"] = refuse
    answer = await ada.get("/v1/stories/s1:watch")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["message"] == "no such story"


async def test_a_watcher_who_leaves_ends_the_call_at_the_service(ada: httpx.AsyncClient, mesh: Mesh) -> None:
    left = asyncio.Event()

    async def wait(_request: Any, _context: Any) -> None:
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            left.set()
            raise

    mesh.calls.instead["WatchStory"] = wait
    watching = asyncio.create_task(ada.get("/v1/stories/s1:watch"))
    await until(lambda: mesh.calls.seen)
    watching.cancel()
    await asyncio.wait_for(left.wait(), 5)


async def test_a_silent_stream_is_closed(mesh_with: Callable[..., Awaitable[Edge]], mesh: Mesh) -> None:
    edge = await mesh_with("timeouts.stream_idle_seconds=0.5")
    async with httpx.AsyncClient(base_url=edge.url, headers={"authorization": f"Bearer {mesh.key.sign()}"}) as ada:
        answer = await ada.get("/v1/stories/s1:watch")
    assert answer.status_code == 504
    assert reason(answer) == "DEADLINE_EXCEEDED"
