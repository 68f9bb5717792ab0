"""Watchers of stories or of notifications in a process of their own, which `watches` controls."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc
import uvloop
from storymesh.notification.v1 import notification_service_pb2 as notifications
from storymesh.notification.v1.notification_service_pb2_grpc import NotificationServiceStub
from storymesh.story.v1 import story_service_pb2 as stories
from storymesh.story.v1.story_service_pb2_grpc import StoryServiceStub

from .running import bearer

_Open = Callable[[str, str, str], Any]
"""Opens a watch, given what is watched, the access token and the resume token."""

_STREAMS_A_CHANNEL = 100
_OPENING = 50
"""Number of watches opened concurrently."""
_PATIENCE_SECONDS = 10.0
_AGAIN_SECONDS = 0.5
_OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


class _Watcher:
    def __init__(self, open_watch: _Open, watched: str, token: str, opening: asyncio.Semaphore) -> None:
        self._open_watch = open_watch
        self._watched = watched
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
        async for message in self._open_watch(self._watched, self._token, self._resume_token):
            self._resume_token = message.resume_token
            now = time.time()
            self.latencies += [now - float(written) for written in _times_in(message)]
            self._watching.set()


def _times_in(message: Any) -> Sequence[str]:
    """The times of writing that a message brings; the service may merge chunks."""
    match message.WhichOneof("event"):
        case "chunk":
            return str(message.chunk.text).split()
        case "added":
            return [message.added.notification.title]
        case _:
            return ()


def _of_stories(channel: grpc.aio.Channel) -> _Open:
    stub = StoryServiceStub(channel)

    def open_watch(watched: str, token: str, resume_token: str) -> Any:
        request = stories.WatchStoryRequest(story_id=watched, resume_token=resume_token)
        return stub.WatchStory(request, metadata=bearer(token))

    return open_watch


def _of_notifications(channel: grpc.aio.Channel) -> _Open:
    """Opens watches of the token's own person."""
    stub = NotificationServiceStub(channel)

    def open_watch(_watched: str, token: str, resume_token: str) -> Any:
        request = notifications.WatchNotificationsRequest(resume_token=resume_token)
        return stub.WatchNotifications(request, metadata=bearer(token))

    return open_watch


_KINDS: Mapping[str, Callable[[grpc.aio.Channel], _Open]] = {
    "stories": _of_stories,
    "notifications": _of_notifications,
}


async def _main() -> None:
    order = await _order()
    opening = asyncio.Semaphore(_OPENING)
    watched: Sequence[tuple[str, str]] = order["watched"]
    calls = [
        _KINDS[order["kind"]](grpc.aio.insecure_channel(order["target"], options=_OWN_CONNECTION))
        for _ in range(-(-len(watched) // _STREAMS_A_CHANNEL))
    ]
    watchers = [
        _Watcher(calls[number // _STREAMS_A_CHANNEL], subject, token, opening)
        for number, (subject, token) in enumerate(watched)
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
