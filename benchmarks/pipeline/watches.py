"""Thousands of watchers at one process of the story service: what each costs, and how late the words are."""

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

# Nobody writes them: the benchmark takes the worker's place, so that a word leaves exactly when it says so.
_BEGIN = """
UPDATE stories SET state = 'RUNNING', attempt = 1, started_at = now(), leased_until = now() + interval '1 hour'
WHERE id = ANY(%(ids)s::uuid[])
"""


@dataclass(frozen=True)
class Watching:
    """Times in seconds."""

    watchers: int
    stories: int
    refused: int
    """Watchers that could not watch within seconds."""
    opened_seconds: float
    """Until all of them had their first message."""
    bytes_each: float
    latencies: Sequence[float]
    """From the append to the progress stream until a watcher has the words."""
    lost: int
    """Words that a watcher did not get."""
    resumed: Sequence[float]
    """From a call with a token to its first message, while the others go on watching."""
    cpu_share: float
    """Processors that the story service used while words came."""


async def measure(
    running: Running, askers: Executor, *, watchers: int, over_stories: int, seconds: float, resumes: int
) -> Watching:
    """Each story gets words once a second, at times spread evenly; `watchers` are spread over the stories."""
    # Python keeps memory that it once had: only a fresh process shows what watchers need.
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
        before, began = _memory(pid), time.perf_counter()
        crowd = await _Crowd.of(running.story_target, [asked[number % len(asked)] for number in range(watchers)])
        try:
            watching = await crowd.ready()
            opened = time.perf_counter() - began
            await asyncio.sleep(_SETTLE_SECONDS)
            memory = _memory(pid)
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


def _memory(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss)


async def _write(progress: Progress, story_ids: Sequence[UUID], seconds: float) -> int:
    """The words are the time at which they were written. How many there were."""
    rounds = max(1, int(seconds))
    began = time.perf_counter()
    for number in range(rounds * len(story_ids)):
        offset, story = divmod(number, len(story_ids))
        await asyncio.sleep(began + number / len(story_ids) - time.perf_counter())
        await progress.append(story_ids[story], Position(1, offset + 1), ProgressKind.CHUNK, f"{time.time()} ")
    await asyncio.sleep(_SETTLE_SECONDS)
    return rounds * len(story_ids)


class _Crowd:
    """The process of the watchers, which is told on its input what to do and answers in lines of JSON."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def of(cls, target: str, watched: Sequence[tuple[str, str]]) -> _Crowd:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.pipeline.crowd"),
            cwd=REPOSITORY,
            env=inherited_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            limit=1 << 26,
        )
        crowd = cls(process)
        await crowd._tell({"target": target, "watched": watched})
        return crowd

    async def ready(self) -> int:
        """How many watchers there are, each with its first message; those that nobody would have are gone."""
        async with asyncio.timeout(_READY_SECONDS):
            (watching,) = await self._answer()
        return int(watching)

    async def resumed(self, count: int) -> list[float]:
        """So many leave and come back with their tokens, one after the other."""
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
