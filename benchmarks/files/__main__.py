"""Runs every measurement and prints one table."""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import uvloop
from rich.console import Console

from benchmarks.machine import this_machine
from benchmarks.report import Row, as_json, show
from local.failures import LocalError
from services.file.adapters.images.pool import ImagePool

from . import thumbnails, uploading
from .profiles import Reads
from .running import PROFILE_SERVERS, SERVERS, STORE, Contender, Running, fastapi, fastapi_installed, running

_PEER = "FastAPI, which the bytes pass through"
_PRINTED_WIDTH = 132


@dataclass(frozen=True)
class Size:
    """A kind of upload, and the goal for its processor time beside the contender's."""

    name: str
    size: int
    goal: str


_SMALL = Size("100 KB", 100_000, "<= 1.2")
_LARGE = Size("100 MB", 100_000_000, "<= 0.2")


@dataclass(frozen=True)
class Length:
    """How many uploads and photos a round has, and how many rounds there are."""

    small: int
    large: int
    photos: int
    megapixels: int
    reads_seconds: float
    idle_seconds: float
    rounds: int


_DEFAULT = Length(small=150, large=2, photos=4, megapixels=24, reads_seconds=3.0, idle_seconds=10.0, rounds=4)
_QUICK = Length(small=3, large=1, photos=1, megapixels=2, reads_seconds=0.3, idle_seconds=1.0, rounds=1)

Upload = Callable[[uploading.Server, int, int], float]


@dataclass
class Cost:
    """Results of one contender and size, each of a round, for one upload."""

    milliseconds: list[dict[str, float]] = field(default_factory=list)
    """Processor time by process."""
    seconds: list[float] = field(default_factory=list)

    def of(self, *processes: str) -> float:
        return statistics.median(sum(each.get(name, 0.0) for name in processes) for each in self.milliseconds)

    @property
    def altogether(self) -> float:
        """Of all processes but the store's."""
        return statistics.median(
            sum(used for name, used in each.items() if name != STORE) for each in self.milliseconds
        )


@dataclass
class Contest:
    """One of those that are compared."""

    contender: Contender
    upload: Upload
    costs: tuple[Cost, Cost] = field(default_factory=lambda: (Cost(), Cost()))
    """Of small and large uploads."""

    idle: dict[str, float] = field(default_factory=dict)
    """Processor seconds that each process uses in a second without any upload: probes, timers, feeds."""

    async def rest(self, seconds: float) -> None:
        """Measure what the processes use when nobody asks for anything."""
        before, began = {name: clock() for name, clock in self.contender.used.items()}, time.perf_counter()
        await asyncio.sleep(seconds)
        took = time.perf_counter() - began
        self.idle = {name: (clock() - before[name]) / took for name, clock in self.contender.used.items()}


@dataclass(frozen=True)
class Part:
    """Uploads of one size in a round."""

    size: Size
    count: int


async def measure(state_dir: Path, length: Length) -> tuple[list[Row], list[str]]:
    """Rows of the table, and notes for its reader."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as clients:
        async with running(state_dir) as mesh, AsyncExitStack() as stack:
            contests = [Contest(mesh.ours, uploading.signed)]
            if fastapi_installed():
                contests.append(Contest(await stack.enter_async_context(fastapi(mesh)), uploading.passed))
            for contest in contests:
                await contest.rest(length.idle_seconds)
            parts = Part(_SMALL, length.small), Part(_LARGE, length.large)
            for contest in contests:
                await _round(clients, contest, mesh.token, Part(_SMALL, min(length.small, 20)), Cost())
            for _ in range(length.rounds):
                for contest in contests:
                    for part, cost in zip(parts, contest.costs, strict=True):
                        await _round(clients, contest, mesh.token, part, cost)
            profiles = await _profiles(clients, mesh, [contest.contender for contest in contests[1:]], length)
    rows = [
        row
        for number, part in enumerate(parts)
        for row in _rows(part.size, contests[0].costs[number], contests[1].costs[number] if contests[1:] else None)
    ]
    return [*rows, await _thumbnails(length), *profiles], _notes()


async def _round(clients: ProcessPoolExecutor, contest: Contest, token: str, part: Part, cost: Cost) -> None:
    used = contest.contender.used
    before = {name: clock() for name, clock in used.items()}
    server = uploading.Server(contest.contender.port, token)
    took = await asyncio.get_running_loop().run_in_executor(clients, contest.upload, server, part.size.size, part.count)
    spent = {
        name: max(0.0, clock() - before[name] - contest.idle.get(name, 0.0) * took) for name, clock in used.items()
    }
    cost.milliseconds.append({name: 1000 * each / part.count for name, each in spent.items()})
    cost.seconds.append(took / part.count)


def _rows(size: Size, ours: Cost, theirs: Cost | None) -> list[Row]:
    beside = _PEER if theirs else f"{_PEER}: not installed"
    what = f"upload of {size.name}"
    rows = [
        Row(
            f"{what}, processor time",
            ours.altogether,
            "ms",
            beside,
            theirs.altogether if theirs else None,
            size.goal,
        ),
        Row(
            f"{what}, time until it is done",
            1000 * statistics.median(ours.seconds),
            "ms",
            beside,
            1000 * statistics.median(theirs.seconds) if theirs else None,
        ),
        Row(
            f"{what}, processor time of SeaweedFS",
            ours.of(STORE),
            "ms",
            beside,
            theirs.of(STORE) if theirs else None,
        ),
    ]
    return rows + [Row(f"{what}, of it in {name}", ours.of(name), "ms") for name in SERVERS]


async def _profiles(
    clients: ProcessPoolExecutor, mesh: Running, peers: Sequence[Contender], length: Length
) -> list[Row]:
    path = f"/v1/users/{mesh.seen_id}"
    ours = Reads(mesh.ours.port, {name: mesh.clock(name) for name in PROFILE_SERVERS})
    theirs = [Reads(each.port, {name: clock for name, clock in each.used.items() if name != STORE}) for each in peers]
    for reads in (ours, *theirs):
        await reads.warm(clients, path, mesh.token)
    for _ in range(length.rounds):
        for reads in (ours, *theirs):
            await reads.round(clients, path, mesh.token, length.reads_seconds)
    peer = theirs[0] if theirs else None
    beside = "FastAPI" if peer else "FastAPI: not installed"
    return [
        Row("read of a profile, processor time", ours.cost, "ms", beside, peer.cost if peer else None, "<= 0.6"),
        Row("reads of a profile", ours.rate, "/s", beside, peer.rate if peer else None),
        Row("read of a profile, p99", ours.p99, "ms", beside, peer.p99 if peer else None, "< 1"),
    ]


async def _thumbnails(length: Length) -> Row:
    data = thumbnails.photo(length.megapixels)
    confined, bare = [], []
    with thumbnails.process() as alone:
        async with ImagePool(processes=1) as pool:
            # Both have loaded Pillow, and each its codecs, before they are measured.
            await pool.render(data, square=False)
            thumbnails.bare(alone, data, 1)
            for _ in range(length.rounds):
                confined.append(length.photos / await thumbnails.confined(pool, data, length.photos))
                bare.append(length.photos / await asyncio.to_thread(thumbnails.bare, alone, data, length.photos))
    return Row(
        f"photos of {length.megapixels} megapixels made into three WebP each",
        statistics.median(confined),
        "for a second of one processor",
        "Pillow alone",
        statistics.median(bare),
        ">= 0.9",
    )


def _notes() -> list[str]:
    return [
        "An upload is a file declared, its bytes sent to SeaweedFS by the signed request, and completed: two calls through Envoy. "
        "The contender takes the bytes itself, passes them on by aiobotocore, large ones in parts as they come, and writes a row.",
        "Processor time is that of all servers, Postgres and Redis included, but neither of SeaweedFS, which has the same to do "
        "for both, nor of the client. The worker, which checks what was uploaded, is left out: the contender checks nothing.",
        "What the processes use when nobody asks for anything is taken off on both sides: an upload of 100 MB lasts seconds, in "
        "which Envoy and the services answer probes as at any time.",
        "The mesh alone counts for the quotas, writes events, refuses revoked tokens, debits all buckets of a person, and tells "
        "the client when the bytes were checked.",
        "A profile is read over 16 connections, by the same statement on both sides; the mesh asks through Envoy.",
        "Photos are made smaller by a process that may open no file and no connection; its processor time and that of its caller "
        "count.",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.files", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small measurements: show that all of them run")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    machine = this_machine()
    try:
        with tempfile.TemporaryDirectory(prefix="storymesh-bench-") as state_dir:
            rows, notes = uvloop.run(measure(Path(state_dir), _QUICK if options.quick else _DEFAULT))
    except LocalError as error:
        print(error, file=sys.stderr)
        return 1
    if options.json:
        print(as_json(machine, rows, notes))
    else:
        width = None if sys.stdout.isatty() else _PRINTED_WIDTH
        show(Console(width=width), machine, rows, notes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
