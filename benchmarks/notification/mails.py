"""Measures mails with codes: handed in all at once for the rate, and one at a time for the time that one takes."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from redis.asyncio import Redis
from storymesh.events.v1 import auth_events_pb2 as events

from benchmarks.machine import cpu_seconds
from benchmarks.pipeline.jobs.contest import PEERS
from kit.data.database import Database
from kit.events import outbox
from kit.events.envelope import Event
from kit.events.inbox_stream import stream_of
from kit.identity.sealing import Seal
from local.harness import RunningMesh

from . import running

_LOOK_SECONDS = 0.02
_DEADLINE_SECONDS = 120.0
_WARM_MAILS = 40
_ISSUED = events.CodeIssued.DESCRIPTOR
_SEALED = events.CodeMail.DESCRIPTOR.full_name

CELERY = "Celery + smtplib"
OURS = "mail worker"


@dataclass
class Rates:
    """Mails per second of each round, and processor seconds of the workers per mail."""

    rates: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    @property
    def mails_per_cpu_second(self) -> float:
        return 1 / statistics.median(self.cpu_seconds)


Feed = Callable[[int], Any]


async def rates(
    mesh: RunningMesh, redis: Redis, *, workers: int, slots: int, mails: int, rounds: int
) -> dict[str, Rates]:
    """Measure both contenders, alternately, at the same mail sink."""
    contenders = [OURS, CELERY] if (PEERS / "celery").exists() else [OURS]
    seen = {name: Rates() for name in contenders}
    for number in range(rounds):
        # Every second round runs in reverse order, so that none has an advantage from its place.
        for name in contenders[:: -1 if number % 2 else 1]:
            async with _contender(name, mesh, redis, workers, slots) as (pids, feed):
                await _sent(mesh, feed, _WARM_MAILS)
                before = cpu_seconds(pids)
                seconds = await _sent(mesh, feed, mails)
                seen[name].rates.append(mails / seconds)
                seen[name].cpu_seconds.append((cpu_seconds(pids) - before) / mails)
    return seen


@asynccontextmanager
async def _contender(
    name: str, mesh: RunningMesh, redis: Redis, workers: int, slots: int
) -> AsyncIterator[tuple[Sequence[int], Feed]]:
    if name == OURS:
        seal = Seal(running.seal_key(mesh))

        async def feed(count: int) -> None:
            async with redis.pipeline(transaction=False) as pipeline:
                for number in range(count):
                    pipeline.xadd(stream_of("notification"), {"event": _event(seal, number).to_bytes()})
                await pipeline.execute()

        async with running.mail_workers(mesh, workers, slots) as pids:
            yield pids, feed
        return
    sys.path.append(str(PEERS))
    from benchmarks.pipeline.jobs.on_celery import app_on

    from .on_celery import TASK

    app = app_on(mesh.redis_url)

    def hand_in(count: int) -> None:
        for number in range(count):
            app.send_task(TASK, (f"reader-{number}@example.com", "Ada", f"{number:06}"))

    async def feed_celery(count: int) -> None:
        await asyncio.to_thread(hand_in, count)

    with running.celery_workers(mesh, workers, slots) as pids:
        yield pids, feed_celery


async def _sent(mesh: RunningMesh, feed: Feed, count: int) -> float:
    """Hand mails in, and return the seconds until the sink has them all."""
    _empty(mesh)
    began = time.perf_counter()
    await feed(count)
    async with asyncio.timeout(_DEADLINE_SECONDS):
        while len(_arrived(mesh)) < count:  # noqa: ASYNC110  # another process writes them
            await asyncio.sleep(_LOOK_SECONDS)
    return time.perf_counter() - began


async def latencies(mesh: RunningMesh, *, mails: int, pause_seconds: float, slots: int) -> list[float]:
    """Seconds from the commit of an event in auth's outbox until the sink takes its mail."""
    seal, db = Seal(running.seal_key(mesh)), Database(mesh.database_url("auth"), pool=2)
    _empty(mesh)
    committed: dict[str, float] = {}
    try:
        async with running.mail_workers(mesh, 1, slots):
            for number in range(mails + _WARM_MAILS):
                issued, address = _issued(seal, number), f"reader-{number}@example.com"
                async with db.single() as tx:
                    await outbox.add(tx, issued, key=UUID(issued.challenge_id))
                committed[address] = time.time()
                await asyncio.sleep(pause_seconds)
            async with asyncio.timeout(_DEADLINE_SECONDS):
                while len(_arrived(mesh)) < mails + _WARM_MAILS:  # noqa: ASYNC110  # another process writes them
                    await asyncio.sleep(_LOOK_SECONDS)
    finally:
        await db.close()
    taken = {_recipient(mesh, name): _taken_at(name) for name in _arrived(mesh)}
    return [taken[address] - at for address, at in list(committed.items())[_WARM_MAILS:]]


def _issued(seal: Seal, number: int) -> events.CodeIssued:
    mail = events.CodeMail(email=f"reader-{number}@example.com", code=f"{number:06}", first_name="Ada")
    issued = events.CodeIssued(
        challenge_id=str(uuid4()),
        purpose=events.CODE_PURPOSE_REGISTRATION,
        sealed_mail=seal.seal(_SEALED, mail.SerializeToString()),
    )
    issued.expire_time.FromDatetime(datetime.now(UTC) + timedelta(minutes=10))
    return issued


def _event(seal: Seal, number: int) -> Event:
    issued = _issued(seal, number)
    return Event(
        id=uuid4(),
        type=_ISSUED.full_name,
        key=issued.challenge_id,
        occurred_at=datetime.now(UTC),
        traceparent="",
        payload=issued.SerializeToString(),
    )


def _arrived(mesh: RunningMesh) -> list[str]:
    return [name for name in os.listdir(mesh.mail_dir) if name.endswith(".eml")]


def _empty(mesh: RunningMesh) -> None:
    for name in _arrived(mesh):
        (mesh.mail_dir / name).unlink()


def _recipient(mesh: RunningMesh, name: str) -> str:
    lines = (mesh.mail_dir / name).read_text().splitlines()
    return next(line.removeprefix("X-RcptTo: ") for line in lines if line.startswith("X-RcptTo: "))


def _taken_at(name: str) -> float:
    """The time of arrival, which begins the file's name."""
    return datetime.strptime(name.partition("-")[0], "%Y%m%dT%H%M%S.%fZ").replace(tzinfo=UTC).timestamp()
