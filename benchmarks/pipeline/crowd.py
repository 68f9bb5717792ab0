"""Watchers of stories in a process of their own: `python -m benchmarks.pipeline.crowd`, controlled by `watches`."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import grpc
import uvloop
from storymesh.story.v1 import story_service_pb2 as pb
from storymesh.story.v1.story_service_pb2_grpc import StoryServiceStub

from .running import bearer

if TYPE_CHECKING:
    from storymesh.story.v1.story_service_pb2_grpc import StoryServiceAsyncStub

_STREAMS_A_CHANNEL = 100
_OPENING = 50
"""Number of watches opened concurrently."""
_PATIENCE_SECONDS = 10.0
_AGAIN_SECONDS = 0.5
_OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


class _Watcher:
    def __init__(self, stub: StoryServiceAsyncStub, story_id: str, token: str, opening: asyncio.Semaphore) -> None:
        self._stub = stub
        self._story_id = story_id
        self._token = token
        self._opening = opening
        self._resume_token = ""
        self._task: asyncio.Task[None] | None = None
        self._watching = asyncio.Event()
        self.latencies: list[float] = []
        self.refusals = 0

    async def open(self) -> bool:
        """Opens the watch and waits for its first message. False if the service refuses the watch for `_PATIENCE_SECONDS`."""
        self._watching.clear()
        async with self._opening:
            self._task = asyncio.create_task(self._watch())
            try:
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    await self._watching.wait()
            except TimeoutError:
                self._task.cancel()
                return False
        return True

    async def resume(self) -> float:
        """Closes the watch, resumes it with its token, and returns the seconds until the first message."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        began = time.perf_counter()
        await self.open()
        return time.perf_counter() - began

    async def _watch(self) -> None:
        """Reopens the watch whenever it is refused or ended by the server."""
        while True:
            try:
                await self._follow()
            except grpc.aio.AioRpcError:
                self.refusals += 1
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _follow(self) -> None:
        request = pb.WatchStoryRequest(story_id=self._story_id, resume_token=self._resume_token)
        async for message in self._stub.WatchStory(request, metadata=bearer(self._token)):
            self._resume_token = message.resume_token
            if message.WhichOneof("event") == "chunk":
                now = time.time()
                # The service may merge chunks.
                self.latencies += [now - float(written) for written in message.chunk.text.split()]
            self._watching.set()


async def _main() -> None:
    order = await _order()
    opening = asyncio.Semaphore(_OPENING)
    watched: Sequence[tuple[str, str]] = order["watched"]
    stubs = [
        StoryServiceStub(grpc.aio.insecure_channel(order["target"], options=_OWN_CONNECTION))
        for _ in range(-(-len(watched) // _STREAMS_A_CHANNEL))
    ]
    watchers = [
        _Watcher(stubs[number // _STREAMS_A_CHANNEL], story_id, token, opening)
        for number, (story_id, token) in enumerate(watched)
    ]
    opened = await asyncio.gather(*(watcher.open() for watcher in watchers))
    watchers = [watcher for watcher, is_open in zip(watchers, opened, strict=True) if is_open]
    _say([len(watchers)])
    count = (await _order())["resume"]
    _say([await watcher.resume() for watcher in watchers[:: max(1, len(watchers) // count)][:count]])
    await _order()
    _say([latency for watcher in watchers for latency in watcher.latencies])
    await _order()


async def _order() -> dict[str, Any]:
    line = await asyncio.to_thread(sys.stdin.readline)
    if not line:
        sys.exit()
    order: dict[str, Any] = json.loads(line)
    return order


def _say(answer: Sequence[float]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    uvloop.run(_main())
