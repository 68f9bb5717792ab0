"""Runs the contenders alternately and measures the jobs per second of each."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from redis.asyncio import Redis

from benchmarks.machine import cpu_seconds
from local.settings import REPOSITORY, inherited_environment
from local.supervision.process import guarded

from . import on_arq, on_celery, on_events, on_inbox, on_recorded_events, on_taskiq
from .process import DONE

PEERS = Path(sys.prefix) / "bench"
"""Folder in which `make bench-pipeline` installs the job queues; the mesh runs without it."""

_DEADLINE_SECONDS = 60.0
_LOOK_SECONDS = 0.05
"""Pause between two checks that all is done: a check is work for Redis and Postgres, whose time is measured."""
_FEWEST = 20


@dataclass(frozen=True)
class Contender:
    """A module of this package that can be run as `work` and as `feed`, and the check that no job is left."""

    name: str
    module: str
    drained: Callable[[Redis], Awaitable[bool]]
    database_url: str = ""
    package: str = ""
    """Package that it requires; empty if none."""

    @property
    def installed(self) -> bool:
        return not self.package or (PEERS / self.package).exists()


@dataclass
class Rates:
    """Results of one contender for each round: jobs per second, and processor time per job by who used it."""

    rates: list[float] = field(default_factory=list)
    cpu_seconds: list[Mapping[str, float]] = field(default_factory=list)
    """Of the process that hands in (`hands in`), of the workers (`work`), and of each server, such as `redis`."""

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    @property
    def per_cpu_second(self) -> float:
        """Jobs per second of processor time, in all processes and servers together."""
        return 1 / statistics.median(sum(each.values()) for each in self.cpu_seconds)

    @property
    def parts(self) -> Mapping[str, float]:
        """Medians of the processor time per job."""
        names = self.cpu_seconds[0] if self.cpu_seconds else {}
        return {name: statistics.median(each[name] for each in self.cpu_seconds) for name in names}


INBOX = Contender("inbox alone", on_inbox.__name__, on_inbox.drained, database_url="postgresql+psycopg://")
EVENTS, RECORDED_EVENTS = "events", "recorded events"
PEER_CONTENDERS = (
    Contender("Celery", on_celery.__name__, on_celery.drained, package="celery"),
    Contender("taskiq", on_taskiq.__name__, on_taskiq.drained, package="taskiq_redis"),
    Contender("arq", on_arq.__name__, on_arq.drained, package="arq"),
)


async def measure(
    redis: Redis,
    redis_url: str,
    contenders: Sequence[Contender],
    logs: Path,
    *,
    servers: Mapping[str, int],
    workers: int,
    slots: int,
    rounds: int,
    seconds: float,
) -> dict[str, Rates]:
    """Measures the installed contenders; the results are by name. `servers` are the pids of Redis and Postgres by name."""
    installed = [contender for contender in contenders if contender.installed]
    seen = {contender.name: Rates() for contender in installed}
    for number in range(rounds):
        # Every second round runs in reverse order, so that none has an advantage from its place.
        for contender in installed[:: -1 if number % 2 else 1]:
            async with _running(contender, redis_url, logs, workers=workers, slots=slots) as processes:
                turn = _Turn(contender, processes, redis, servers)
                warm = await turn.rate(_FEWEST)
                count = max(
                    _FEWEST, int(min(await turn.rate(max(_FEWEST, int(warm * seconds / 10))), 10_000) * seconds)
                )
                before = turn.cpu_seconds()
                seen[contender.name].rates.append(await turn.rate(count))
                used = {name: (seconds - before[name]) / count for name, seconds in turn.cpu_seconds().items()}
                seen[contender.name].cpu_seconds.append(used)
    return seen


@dataclass
class _Turn:
    contender: Contender
    processes: Sequence[subprocess.Popen[str]]
    redis: Redis
    servers: Mapping[str, int]

    async def rate(self, count: int) -> float:
        """Enqueues jobs and waits until all are done, by what Redis holds. Returns jobs per second."""
        feeder = self.processes[0]
        began = time.perf_counter()
        async with asyncio.timeout(_DEADLINE_SECONDS):
            await asyncio.to_thread(_order, feeder, count)
            while not await self.contender.drained(self.redis):  # noqa: ASYNC110  # others drain it
                await asyncio.sleep(_LOOK_SECONDS)
        return count / (time.perf_counter() - began)

    def cpu_seconds(self) -> Mapping[str, float]:
        feeder, *workers = (process.pid for process in self.processes)
        whose = {"hands in": [feeder], "work": workers} | {name: [pid] for name, pid in self.servers.items()}
        return {name: cpu_seconds(pids) for name, pids in whose.items()}


def _order(feeder: subprocess.Popen[str], count: int) -> None:
    assert feeder.stdin  # noqa: S101  # a pipe was asked for
    assert feeder.stdout  # noqa: S101  # a pipe was asked for
    feeder.stdin.write(f"{count}\n")
    feeder.stdin.flush()
    answer = feeder.stdout.readline().strip()
    if answer != DONE:
        raise RuntimeError(f"a feeder said {answer!r}")


@asynccontextmanager
async def _running(
    contender: Contender, redis_url: str, logs: Path, *, workers: int, slots: int
) -> AsyncIterator[Sequence[subprocess.Popen[str]]]:
    """Starts the feeder, then the workers; they end with the block, and with this process."""
    environment = inherited_environment()
    if contender.package:
        environment["PYTHONPATH"] = os.pathsep.join([str(PEERS), str(REPOSITORY), str(REPOSITORY / "gen")])
    processes = []
    try:
        with (logs / f"{contender.module.rpartition('.')[2]}.log").open("ab") as log:
            for verb in ("feed", *["work"] * workers):
                command = [sys.executable, "-m", contender.module, verb, redis_url, str(slots), contender.database_url]
                process = subprocess.Popen(  # noqa: ASYNC220, S603  # our own program; its start is too short to need a thread
                    guarded(command, death_signal=signal.SIGKILL, account=None),
                    cwd=REPOSITORY,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE if verb == "feed" else log,
                    stderr=log,
                    text=True,
                )
                processes.append(process)
        yield processes
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            await asyncio.to_thread(process.wait)
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    pipe.close()


def event_contenders(database_url: str, drained: Callable[[Redis], Awaitable[bool]]) -> Sequence[Contender]:
    """The mesh's event path, without and with a record of each event; each has its own database."""
    return (
        Contender(EVENTS, on_events.__name__, drained, database_url=database_url),
        Contender(RECORDED_EVENTS, on_recorded_events.__name__, drained, database_url=database_url),
    )
