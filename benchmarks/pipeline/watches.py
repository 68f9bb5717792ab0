"""Measures thousands of watchers of one process of the story service: memory per watcher, and latency of words."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from uuid import UUID

import psutil

from benchmarks.machine import cpu_seconds
from kit.data import redis as kit_redis
from local.settings import REPOSITORY, inherited_environment
from services.story.model import Position
from services.story.store.progress import Progress, ProgressKind

from . import stories
from .running import Running

_READY_SECONDS = 120.0
_SETTLE_SECONDS = 1.0

# No worker writes these stories: the benchmark does, so that each word contains the exact time at which it was written.
_BEGIN = """
UPDATE stories SET state = 'RUNNING', attempt = 1, started_at = now(), leased_until = now() + interval '1 hour'
WHERE id = ANY(%(ids)s::uuid[])
"""


@dataclass(frozen=True)
class Watching:
    """Results of one measurement; times are in seconds."""

    watchers: int
    subjects: int
    """Number of stories, or of people, that they watch."""
    refused: int
    """Number of watchers without a first message in time."""
    opened_seconds: float
    """Time until all watchers had their first message."""
    bytes_each: float
    latencies: Sequence[float]
    """Times from the append to the progress stream until a watcher has the words."""
    lost: int
    """Number of words that did not reach a watcher."""
    resumed: Sequence[float]
    """Times from a resuming call to its first message, while the other watchers continue."""
    cpu_share: float
    """Processor time of the story service as a share of one processor, while words were sent."""


async def measure(
    running: Running, askers: Executor, *, watchers: int, over_stories: int, seconds: float, resumes: int
) -> Watching:
    """Measures watchers that are spread over the stories; each story gets words once a second, at evenly spread times."""
    # Python does not return freed memory, so only a new process shows what watchers need.
    await running.mesh.restart("story")
    asking = partial(stories.ask, running.story_target, running.tokens, over_stories)
    asked = await asyncio.get_running_loop().run_in_executor(askers, asking)
    ids = [story_id for story_id, _ in asked]
    await running.query("story", _BEGIN, ids=ids)
    pid = running.mesh.pid("story")
    async with kit_redis.connect(running.mesh.redis_url) as redis:
        progress = Progress(redis)
        for story_id in ids:
            await progress.append(UUID(story_id), Position(1, 0), ProgressKind.BEGIN)
        before, began = memory_of(pid), time.perf_counter()
        crowd = await Crowd.of(
            running.story_target, "stories", [asked[number % len(asked)] for number in range(watchers)]
        )
        try:
            watching = await crowd.ready()
            opened = time.perf_counter() - began
            await asyncio.sleep(_SETTLE_SECONDS)
            memory = memory_of(pid)
            used, began = cpu_seconds([pid]), time.perf_counter()
            words = await _write(progress, [UUID(story_id) for story_id in ids], seconds)
            share = (cpu_seconds([pid]) - used) / (time.perf_counter() - began)
            resumed = await crowd.resumed(resumes)
            latencies = await crowd.latencies()
        finally:
            crowd.end()
    return Watching(
        watchers,
        over_stories,
        refused=watchers - watching,
        opened_seconds=opened,
        bytes_each=(memory - before) / watching,
        latencies=latencies,
        lost=words * watching // len(ids) - len(latencies),
        resumed=resumed,
        cpu_share=share,
    )


def memory_of(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss)


async def _write(progress: Progress, story_ids: Sequence[UUID], seconds: float) -> int:
    """Writes words that each contain their time of writing. Returns how many."""
    rounds = max(1, int(seconds))
    began = time.perf_counter()
    for number in range(rounds * len(story_ids)):
        offset, story = divmod(number, len(story_ids))
        await asyncio.sleep(began + number / len(story_ids) - time.perf_counter())
        await progress.append(story_ids[story], Position(1, offset + 1), ProgressKind.CHUNK, f"{time.time()} ")
    await asyncio.sleep(_SETTLE_SECONDS)
    return rounds * len(story_ids)


class Crowd:
    """The process of the watchers, which takes orders from its standard input and answers in lines of JSON."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def of(cls, target: str, kind: str, watched: Sequence[tuple[str, str]]) -> Crowd:
        """Watchers of `stories` or `notifications`: for each what it watches, and its access token."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.pipeline.crowd"),
            cwd=REPOSITORY,
            env=inherited_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            limit=1 << 26,
        )
        crowd = cls(process)
        await crowd._tell({"target": target, "kind": kind, "watched": watched})
        return crowd

    async def ready(self) -> int:
        """Number of watchers that have their first message; those that were refused have ended."""
        async with asyncio.timeout(_READY_SECONDS):
            (watching,) = await self._answer()
        return int(watching)

    async def resumed(self, count: int) -> list[float]:
        """Lets watchers close and resume with their tokens, one after the other. Returns the seconds until each first message."""
        await self._tell({"resume": count})
        return list(await self._answer())

    async def latencies(self) -> list[float]:
        await self._tell({"report": True})
        return list(await self._answer())

    def end(self) -> None:
        self._process.kill()

    async def _tell(self, order: object) -> None:
        assert self._process.stdin  # noqa: S101  # a pipe was asked for
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        await self._process.stdin.drain()

    async def _answer(self) -> Sequence[float]:
        assert self._process.stdout  # noqa: S101  # a pipe was asked for
        answer: Sequence[float] = json.loads(await self._process.stdout.readline())
        return answer
