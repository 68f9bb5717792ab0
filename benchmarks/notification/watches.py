"""Measures thousands of watchers of one process of the notification service: memory per watcher, and latency of changes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from uuid import UUID, uuid4

import jwt

from benchmarks.machine import cpu_seconds
from benchmarks.pipeline.running import Running
from benchmarks.pipeline.watches import Crowd, Watching, memory_of
from kit.data.database import Database
from kit.runtime.clock import system_clock
from services.notification.model import Kind
from services.notification.model.notifications import ShortText, Target, TargetType
from services.notification.operations.notifications import Notifier

_SETTLE_SECONDS = 1.0


async def measure(running: Running, *, watchers: int, people: int, seconds: float, resumes: int) -> Watching:
    """Measures watchers that are spread over the people; each person is notified once a second, at evenly spread times."""
    # Python does not return freed memory, so only a new process shows what watchers need.
    await running.mesh.restart("notification")
    tokens = running.tokens[:people]
    pid = running.mesh.pid("notification")
    db = Database(running.mesh.database_url("notification"), pool=4)
    before, began = memory_of(pid), time.perf_counter()
    watched = [("", tokens[number % people]) for number in range(watchers)]
    crowd = await Crowd.of(running.mesh.address("notification"), "notifications", watched)
    try:
        watching = await crowd.ready()
        opened = time.perf_counter() - began
        await asyncio.sleep(_SETTLE_SECONDS)
        held = memory_of(pid)
        used, began = cpu_seconds([pid]), time.perf_counter()
        told = await _tell(db, [_person_of(token) for token in tokens], seconds)
        share = (cpu_seconds([pid]) - used) / (time.perf_counter() - began)
        resumed = await crowd.resumed(resumes)
        latencies = await crowd.latencies()
    finally:
        crowd.end()
        await db.close()
    return Watching(
        watchers,
        people,
        refused=watchers - watching,
        opened_seconds=opened,
        bytes_each=(held - before) / watching,
        latencies=latencies,
        lost=told * watching // people - len(latencies),
        resumed=resumed,
        cpu_share=share,
    )


async def _tell(db: Database, people: Sequence[UUID], seconds: float) -> int:
    """Adds notifications whose titles are the times at which they were begun. Returns how many."""
    notifier, count = Notifier(system_clock), max(1, int(seconds)) * len(people)
    began = time.perf_counter()
    for number in range(count):
        await asyncio.sleep(began + number / len(people) - time.perf_counter())
        async with db.transaction() as tx:
            text = ShortText(str(time.time()))
            target = Target(TargetType.STORY, uuid4())
            await notifier.notify(tx, people[number % len(people)], Kind.STORY_READY, text, target)
    await asyncio.sleep(_SETTLE_SECONDS)
    return count


def _person_of(token: str) -> UUID:
    return UUID(jwt.decode(token, options={"verify_signature": False})["sub"])
