"""Measures the time from a request to the first words at a client of server-sent events behind Envoy."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import cycle

import uvloop

from .running import Running

A_SECOND = 20

_LINE_LIMIT = 1 << 20
_BODY = json.dumps({"preferences": ["lighthouses"], "theme": "a letter", "length": "STORY_LENGTH_SHORT"})
_STEPS = """
SELECT stories.id::text, created_at, min(published_at), started_at FROM stories JOIN outbox ON outbox.key = stories.id::text
WHERE stories.id = ANY(%(ids)s::uuid[]) GROUP BY stories.id
"""


@dataclass(frozen=True)
class Asked:
    """One story as a client saw it; times are in seconds since the epoch."""

    story_id: str
    asked_at: float
    answered_at: float
    watched_at: float
    """When the watch, which begins after the answer, has sent its first message."""
    words_at: float

    @property
    def latency(self) -> float:
        return self.words_at - self.asked_at


@dataclass(frozen=True)
class FirstWords:
    asked: Sequence[Asked]
    failed: int
    steps: dict[str, float]
    """Median time from the request to each step, in seconds."""


async def measure(running: Running, readers: Executor, *, workers: int, slots: int, seconds: float) -> FirstWords:
    """Measures with enough slots that no story waits for another, and with a writer that does not pause between words."""
    job = partial(read, running.mesh.layout.settings.port, running.tokens)
    async with running.story_workers(workers, writer_concurrency=slots, composer_pace=0):
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(
            readers, partial(job, seconds=min(seconds, 1.0))
        )  # warm-up: connections, caches, imports
        seen = await loop.run_in_executor(readers, partial(job, seconds=seconds))
    asked = [one for one in seen if one is not None]
    return FirstWords(asked, len(seen) - len(asked), await _steps(running, asked))


async def _steps(running: Running, asked: Sequence[Asked]) -> dict[str, float]:
    rows = await running.query("story", _STEPS, ids=[one.story_id for one in asked])
    times: dict[str, Sequence[datetime]] = {row[0]: row[1:] for row in rows}
    names = ("the row", "the relay", "the worker")
    steps = {
        name: statistics.median(times[one.story_id][number].timestamp() - one.asked_at for one in asked)
        for number, name in enumerate(names)
    }
    steps["the answer"] = statistics.median(one.answered_at - one.asked_at for one in asked)
    steps["the watch"] = statistics.median(one.watched_at - one.asked_at for one in asked)
    steps["the words"] = statistics.median(one.latency for one in asked)
    return steps


def read(port: int, tokens: Sequence[str], *, seconds: float) -> list[Asked | None]:
    """Requests stories at a fixed rate and watches each to its end, in a process of its own. None for each that failed."""
    return uvloop.run(_read(port, tokens, seconds))


async def _read(port: int, tokens: Sequence[str], seconds: float) -> list[Asked | None]:
    turns, reading = cycle(tokens), []
    began = time.perf_counter()
    for number in range(max(2, int(seconds * A_SECOND))):
        await asyncio.sleep(began + number / A_SECOND - time.perf_counter())
        reading.append(asyncio.create_task(_reader(port, next(turns))))
    return await asyncio.gather(*reading)


async def _reader(port: int, token: str) -> Asked | None:
    """A client of bare HTTP/1.1, because the cost of a client library would be a large part of the result."""
    try:
        async with asyncio.timeout(30):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=_LINE_LIMIT)
            try:
                return await _ask_and_watch(reader, writer, token)
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError, KeyError, asyncio.IncompleteReadError):
        return None


async def _ask_and_watch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str) -> Asked:
    common = f"host: 127.0.0.1\r\nauthorization: Bearer {token}\r\n"
    asked_at = time.time()
    writer.write(
        f"POST /v1/stories HTTP/1.1\r\n{common}content-type: application/json\r\n"
        f"content-length: {len(_BODY)}\r\n\r\n{_BODY}".encode()
    )
    length = 0
    while line := (await reader.readuntil(b"\r\n")).strip().lower():
        if line.startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    story_id = json.loads(await reader.readexactly(length))["story"]["id"]
    answered_at = time.time()
    writer.write(f"GET /v1/stories/{story_id}:watch HTTP/1.1\r\n{common}accept: text/event-stream\r\n\r\n".encode())
    watched_at = words_at = 0.0
    while line := await reader.readuntil(b"\n"):
        if not line.startswith(b"data:"):
            continue
        watched_at = watched_at or time.time()
        message = json.loads(line.removeprefix(b"data:"))
        if not words_at and (message.get("chunk") or message.get("snapshot") or {}).get("text"):
            words_at = time.time()
        if "done" in message:
            break
    return Asked(story_id, asked_at, answered_at, watched_at, words_at or time.time())
