"""Measures whole stories: requested over gRPC, written by two workers without pauses, announced by mail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial
from itertools import cycle

import grpc
import uvloop
from storymesh.story.v1 import story_pb2
from storymesh.story.v1 import story_service_pb2 as pb
from storymesh.story.v1.story_service_pb2_grpc import StoryServiceStub

from benchmarks.machine import cpu_seconds

from .jobs.contest import Rates
from .jobs.process import FEEDERS
from .running import Running, bearer

COMPONENTS = ("story", "notification-worker", "auth", "mail", "postgres", "redis")

_LOOK_SECONDS = 0.05
_DEADLINE_SECONDS = 90.0
_MAILED = "SELECT count(*) FROM deliveries WHERE kind = 'STORY_READY' AND state = 'SENT'"
_FEWEST = 10
_WARM = 40


async def measure(
    running: Running, askers: Executor, *, workers: int, slots: int, rounds: int, seconds: float
) -> tuple[Rates, dict[str, float]]:
    """Measures the rates, and the processor time per story by process in the last round."""
    rates, used = Rates(), {}
    async with running.story_workers(workers, composer_pace=0, writer_concurrency=slots) as story_workers:
        warm = await _rate(running, askers, min(_WARM, int(_FEWEST * max(seconds, 1))))
        for _ in range(rounds):
            count = max(_FEWEST, int(warm * seconds))
            before = {name: cpu_seconds([running.mesh.pid(name)]) for name in COMPONENTS}
            written = cpu_seconds(story_workers.pids)
            rates.rates.append(await _rate(running, askers, count))
            used = {name: (cpu_seconds([running.mesh.pid(name)]) - spent) / count for name, spent in before.items()} | {
                "story workers": (cpu_seconds(story_workers.pids) - written) / count
            }
    return rates, used


async def _rate(running: Running, askers: Executor, count: int) -> float:
    """Stories per second, from the first request to the last mail."""
    ((before,),) = await running.query("notification", _MAILED)
    began = time.perf_counter()
    asking = partial(ask, running.story_target, running.tokens, count)
    await asyncio.get_running_loop().run_in_executor(askers, asking)
    async with asyncio.timeout(_DEADLINE_SECONDS):
        while (await running.query("notification", _MAILED))[0][0] < before + count:  # noqa: ASYNC110  # others send them
            await asyncio.sleep(_LOOK_SECONDS)
    return count / (time.perf_counter() - began)


def ask(
    target: str, tokens: Sequence[str], count: int, length: int = story_pb2.STORY_LENGTH_SHORT
) -> list[tuple[str, str]]:
    """Requests stories concurrently, in a process of its own. Returns their ids, each with its owner's token."""
    return uvloop.run(_ask(target, tokens, count, length))


async def _ask(target: str, tokens: Sequence[str], count: int, length: int) -> list[tuple[str, str]]:
    asked: list[tuple[str, str]] = []
    turns = cycle(tokens)

    async with grpc.aio.insecure_channel(target) as channel:
        stub = StoryServiceStub(channel)
        request = pb.CreateStoryRequest(
            preferences=["lighthouses"], theme="a letter", length=story_pb2.StoryLength.ValueType(length)
        )

        async def some(share: int) -> None:
            for _ in range(share):
                token = next(turns)
                answer = await stub.CreateStory(request, metadata=bearer(token), timeout=30)
                asked.append((answer.story.id, token))

        await asyncio.gather(*(some(count // FEEDERS + (number < count % FEEDERS)) for number in range(FEEDERS)))
    return asked
