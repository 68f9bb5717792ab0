"""Measures how long a story pauses when its worker is killed."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import grpc
from storymesh.story.v1 import story_pb2
from storymesh.story.v1 import story_service_pb2 as pb
from storymesh.story.v1.story_service_pb2_grpc import StoryServiceStub

from . import stories
from .running import Running, bearer

if TYPE_CHECKING:
    from storymesh.story.v1.story_service_pb2_grpc import StoryServiceAsyncStub

STORIES = 4
"""Number of stories of the killed worker."""

_PACE_SECONDS = 0.1
_SLOTS = 32
_AFTER_THE_KILL_SECONDS = 0.3
"""Words that arrive within this time after the kill may still be the killed worker's."""
_TOLD = {"chunk", "reset", "snapshot"}


@dataclass
class _Watch:
    """A watch that records the times at which words arrived, and the number of attempts."""

    words_at: list[float] = field(default_factory=list)


async def measure(running: Running, askers: Executor, *, lease_seconds: float, kills: int) -> list[float]:
    """Measures the seconds from SIGKILL to the next words at a watcher, for each story of each kill."""
    recovered: list[float] = []
    async with (
        grpc.aio.insecure_channel(running.story_target) as channel,
        running.story_workers(
            1, lease_seconds=lease_seconds, composer_pace=_PACE_SECONDS, writer_concurrency=_SLOTS, story_attempts=1000
        ) as workers,
    ):
        asking = partial(stories.ask, running.story_target, running.tokens, STORIES, story_pb2.STORY_LENGTH_LONG)
        asked = await asyncio.get_running_loop().run_in_executor(askers, asking)
        watches = [_Watch() for _ in asked]
        watching = [
            asyncio.create_task(_watch(StoryServiceStub(channel), story_id, token, watch))
            for (story_id, token), watch in zip(asked, watches, strict=True)
        ]
        try:
            await _new_words(watches, after=0.0, seconds=30)
            for _ in range(kills):
                # The worker that takes over is running already, as in a mesh of several workers.
                await workers.start()
                killed_at = workers.kill_oldest()
                recovered += await _new_words(watches, after=killed_at, seconds=3 * lease_seconds + 20)
        finally:
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
    return recovered


async def _new_words(watches: list[_Watch], *, after: float, seconds: float) -> list[float]:
    """Waits until every watcher has new words. Returns the seconds that each waited."""
    since = after + _AFTER_THE_KILL_SECONDS
    async with asyncio.timeout(seconds):
        while not all(watch.words_at and watch.words_at[-1] > since for watch in watches):  # noqa: ASYNC110  # polls
            await asyncio.sleep(0.05)
    return [next(at for at in watch.words_at if at > since) - after for watch in watches]


async def _watch(stub: StoryServiceAsyncStub, story_id: str, token: str, watch: _Watch) -> None:
    resume_token = ""
    while True:
        request = pb.WatchStoryRequest(story_id=story_id, resume_token=resume_token)
        async for message in stub.WatchStory(request, metadata=bearer(token)):
            resume_token = message.resume_token
            kind = message.WhichOneof("event")
            if kind in _TOLD:
                watch.words_at.append(time.time())
        await asyncio.sleep(0.1)
