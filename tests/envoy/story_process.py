"""A story service with scripted answers in a process of its own, which tests kill, stop and drain.

python -m tests.envoy.story_process NAME [HOST:PORT]

It runs the mesh's real server. Each answer carries the name. A creation takes a moment, so that some are always in progress; a
watch sends messages until the process drains.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
from storymesh.story.v1 import story_pb2
from storymesh.story.v1 import story_service_pb2 as story
from storymesh.story.v1 import story_service_pb2_grpc as story_grpc

from kit.rpc.server import Server
from kit.runtime.settings import ServiceSettings
from tests.identity import MESH_KEY

Context = grpc.aio.ServicerContext[Any, Any]
SERVICE = "storymesh.story.v1.StoryService"
BUSY_SECONDS = 0.05


class Stories(story_grpc.StoryServiceServicer):
    def __init__(self, name: str, stopping: asyncio.Event) -> None:
        self._name = name
        self._stopping = stopping

    async def GetStory(self, request: story.GetStoryRequest, context: Context) -> story.GetStoryResponse:
        await asyncio.sleep(BUSY_SECONDS)
        return story.GetStoryResponse(story=story_pb2.Story(id=request.story_id, title=self._name))

    async def CreateStory(self, request: story.CreateStoryRequest, context: Context) -> story.CreateStoryResponse:
        await asyncio.sleep(BUSY_SECONDS)
        return story.CreateStoryResponse(story=story_pb2.Story(id="s", title=self._name))

    async def WatchStory(
        self, request: story.WatchStoryRequest, context: Context
    ) -> AsyncIterator[story.WatchStoryResponse]:
        while not self._stopping.is_set():
            yield story.WatchStoryResponse(chunk=story.WatchStoryResponse.Chunk(text=self._name))
            await asyncio.sleep(BUSY_SECONDS)
        yield story.WatchStoryResponse(reconnect=story.WatchStoryResponse.Reconnect())


async def serve(name: str, listen: str = "127.0.0.1:0") -> None:
    server = Server(ServiceSettings(listen=listen, mesh_key=MESH_KEY, drain_seconds=5), required={})
    stories = Stories(name, server.stopping)  # type: ignore[abstract]  # what no test calls is UNIMPLEMENTED
    server.address.add_done_callback(lambda address: print(address.result(), flush=True))
    server.add_foreign(story_grpc.add_StoryServiceServicer_to_server, stories)
    await server.run()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
