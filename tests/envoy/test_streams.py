"""Server streams as server-sent events and as native gRPC."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import httpx2
import pytest
from storymesh.story.v1 import story_service_pb2 as story
from storymesh.story.v1 import story_service_pb2_grpc as story_grpc

from kit.rpc.stream_end import say_ended
from mesh.edge_protocol import STREAM_ENDED_HEADER
from tests.envoy.conftest import Edge, Mesh, until
from tests.envoy.statuses import reason


async def events(answer: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in answer.aiter_lines():
        if line.startswith("data:"):
            yield json.loads(line.removeprefix("data:"))


async def test_a_watch_is_a_stream_of_events_that_arrive_one_by_one(ada: httpx2.AsyncClient, mesh: Mesh) -> None:
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


async def test_each_event_has_the_token_of_its_message_as_its_id(ada: httpx2.AsyncClient, mesh: Mesh) -> None:
    # The second token may not stand in an id line, because it is no header's value; its event keeps its data.
    for token in ("once", 'up"on\\ {a}\n', "a-time_2", "", "x" * 600, None):
        mesh.story.chunks.put_nowait(token)
    answer = await ada.get("/v1/stories/s1:watch")
    blocks = [block.splitlines() for block in answer.text.split("\n\n") if block]
    ids = [[line for line in block if not line.startswith("data:")] for block in blocks]
    assert ids == [["id: once"], [], ["id: a-time_2"], [], []]
    texts = [json.loads(block[0].removeprefix("data:"))["chunk"]["text"] for block in blocks]
    assert texts == ["once", 'up"on\\ {a}\n', "a-time_2", "", "x" * 600]


@pytest.mark.parametrize(
    ("query", "header", "token"),
    [
        ("", "t-1_a", "t-1_a"),
        ("", 'odd/ +&=%?#"token', 'odd/ +&=%?#"token'),
        ("?resume_token=older", "newer", "newer"),
        ("?resume_token=", "newer", "newer"),
        ("?resume_token=older", "", "older"),
        ("", "", ""),
        ("", "x" * 5000, "x" * 513),
    ],
)
async def test_the_last_event_id_is_the_resume_token(
    ada: httpx2.AsyncClient, mesh: Mesh, query: str, header: str, token: str
) -> None:
    mesh.story.chunks.put_nowait(None)
    answer = await ada.get(f"/v1/stories/s1:watch{query}", headers={"last-event-id": header})
    assert answer.status_code == 200
    assert mesh.calls.last.request == story.WatchStoryRequest(story_id="s1", resume_token=token)


async def test_a_last_event_id_beside_a_misspelt_parameter_hides_nothing(ada: httpx2.AsyncClient) -> None:
    answer = await ada.get("/v1/stories/s1:watch?resumetoken=x", headers={"last-event-id": "t"})
    assert (answer.status_code, reason(answer)) == (400, "REQUEST_MALFORMED")


async def test_elsewhere_a_last_event_id_means_nothing(ada: httpx2.AsyncClient, mesh: Mesh) -> None:
    assert (await ada.get("/v1/stories", headers={"last-event-id": "t"})).status_code == 200
    assert mesh.calls.last.request == story.ListStoriesRequest()


async def end_again(_request: Any, context: Any) -> None:
    await say_ended(context)


async def test_a_client_that_knows_the_end_is_answered_204(ada: httpx2.AsyncClient, mesh: Mesh) -> None:
    mesh.calls.instead["WatchStory"] = end_again
    for _ in range(2):
        # On the same connection: a rest of the body would be read as the beginning of the next answer.
        mesh.story.chunks.put_nowait("done")
        mesh.story.chunks.put_nowait(None)
        answer = await ada.get("/v1/stories/s1:watch", headers={"last-event-id": "done"})
        assert (answer.status_code, answer.content) == (204, b"")
        assert "content-type" not in answer.headers
        assert STREAM_ENDED_HEADER not in answer.headers


async def test_a_native_client_that_knows_the_end_gets_it_again(
    channel: grpc.aio.Channel, credentials: tuple[tuple[str, str]], mesh: Mesh
) -> None:
    mesh.calls.instead["WatchStory"] = end_again
    mesh.story.chunks.put_nowait("done")
    mesh.story.chunks.put_nowait(None)
    watch = story_grpc.StoryServiceStub(channel).WatchStory(story.WatchStoryRequest(), metadata=credentials)
    assert [message.chunk.text async for message in watch] == ["done"]
    assert STREAM_ENDED_HEADER not in dict(await watch.initial_metadata())


async def test_a_stream_outlives_the_timeout_of_a_whole_answer(ada: httpx2.AsyncClient, mesh: Mesh) -> None:
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


async def test_a_refusal_before_the_first_event_is_a_json_error(ada: httpx2.AsyncClient, mesh: Mesh) -> None:
    async def refuse(_request: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such story")

    mesh.calls.instead["WatchStory"] = refuse
    answer = await ada.get("/v1/stories/s1:watch")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["message"] == "no such story"


async def test_a_watcher_who_leaves_ends_the_call_at_the_service(ada: httpx2.AsyncClient, mesh: Mesh) -> None:
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
    async with httpx2.AsyncClient(base_url=edge.url, headers={"authorization": f"Bearer {mesh.key.sign()}"}) as ada:
        answer = await ada.get("/v1/stories/s1:watch")
    assert answer.status_code == 504
    assert reason(answer) == "DEADLINE_EXCEEDED"
