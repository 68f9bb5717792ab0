"""Runs every measurement and prints one table."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop
from rich.console import Console

from benchmarks.auth import load
from benchmarks.machine import percentile, stolen_seconds, this_machine
from benchmarks.report import Row, as_json, show
from kit.data import redis as kit_redis
from kit.data.database import Database
from local.failures import LocalError
from local.harness import Servers, servers

from . import first_words, recovery, stories, watches
from .jobs import contest, on_events
from .jobs.contest import Rates
from .running import running

_WORKERS = 2
_SLOTS = 10
"""Concurrent jobs of each worker, the mesh's and the job queues'."""
_SLOTS_ENOUGH = 64
_PRINTED_WIDTH = 132
_BY_PROCESSOR_TIME = ", for each second of processor time"
_OURS = {
    "no-op jobs, inbox alone": contest.INBOX.name,
    "no-op events, durable": contest.EVENTS,
    "no-op events, recorded": contest.RECORDED_EVENTS,
}
"""What is compared with the job queues, and the contender's name."""


@dataclass(frozen=True)
class Length:
    """Duration, number of rounds and sizes of the measurements."""

    seconds: float
    rounds: int
    watchers: int
    stories: int
    """Number of stories that the watchers are spread over, if they do not all watch one."""
    kills: Mapping[float, int]
    """Number of kills of story workers, by the lease in seconds."""
    people: int = 4


_DEFAULT = Length(3.0, 2, watchers=2000, stories=200, kills={15.0: 1, 3.0: 3})
_QUICK = Length(0.5, 1, watchers=40, stories=10, kills={1.5: 1}, people=2)


async def measure(state_dir: Path, length: Length) -> tuple[list[Row], list[str]]:
    """Rows of the table, and notes for its reader."""
    took: dict[str, float] = {}
    with load.process() as others, _timed(took, "altogether"):
        async with running(state_dir, people=length.people) as mesh:
            with _timed(took, "jobs"):
                rates = await _jobs(mesh.mesh, length)
            with _timed(took, "stories"):
                whole, used = await stories.measure(
                    mesh, others, workers=_WORKERS, slots=_SLOTS, rounds=length.rounds, seconds=length.seconds
                )
            with _timed(took, "first words"):
                words = await first_words.measure(
                    mesh, others, workers=_WORKERS, slots=_SLOTS_ENOUGH, seconds=3 * length.seconds
                )
            with _timed(took, "recovery"):
                recovered = {
                    lease: await recovery.measure(mesh, others, lease_seconds=lease, kills=kills)
                    for lease, kills in length.kills.items()
                }
            with _timed(took, "watches"):
                watched = [
                    await watches.measure(
                        mesh,
                        others,
                        watchers=length.watchers,
                        over_stories=over_stories,
                        seconds=2 * length.seconds,
                        resumes=min(length.watchers, 100),
                    )
                    for over_stories in (1, length.stories)
                ]
    rows = [
        *_about_jobs(rates),
        *_against("whole stories, durable", whole, rates),
        *_first_words(words),
        *(
            Row(f"recovery after SIGKILL, lease {lease:g} s, p50", statistics.median(times), "s")
            for lease, times in recovered.items()
        ),
        *(row for each in watched for row in _watching(each)),
    ]
    notes = [*_about_rates(rates), _about_stories(used), *_about_words(words), *map(_about_watching, watched)]
    return rows, [*notes, f"It took {', '.join(f'{part} {seconds:.0f} s' for part, seconds in took.items())}."]


@contextmanager
def _timed(took: dict[str, float], part: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    took[part] = time.perf_counter() - began


async def measure_jobs(state_dir: Path, length: Length) -> tuple[list[Row], list[str]]:
    """As `measure`, of jobs and events alone: the mesh is not started."""
    async with servers(state_dir, mail=False, durable=True) as stores:
        rates = await _jobs(stores, length)
    return _about_jobs(rates), _about_rates(rates)


async def _jobs(stores: Servers, length: Length) -> dict[str, Rates]:
    database_url = on_events.create_database(stores.postgres_admin_url)
    db = Database(database_url, pool=1)
    try:
        async with kit_redis.connect(stores.redis_url) as redis:
            events = contest.event_contenders(database_url, lambda redis: on_events.drained(redis, db))
            return await contest.measure(
                redis,
                stores.redis_url,
                [contest.INBOX, *events, *contest.PEER_CONTENDERS],
                stores.layout.logs,
                servers={name: stores.pid(name) for name in ("redis", "postgres")},
                workers=_WORKERS,
                slots=_SLOTS,
                rounds=length.rounds,
                seconds=length.seconds,
            )
    finally:
        await db.close()


_Figure = Callable[[Rates], float]


def _rate(seen: Rates) -> float:
    return seen.rate


def _about_jobs(rates: Mapping[str, Rates]) -> list[Row]:
    """Each kind of ours beside each job queue, by rate and by processor time."""
    return [
        row
        for what, name in _OURS.items()
        for how, figure in (("", _rate), (_BY_PROCESSOR_TIME, lambda seen: seen.per_cpu_second))
        for row in _against(f"{what}{how}", rates[name], rates, figure, goal=">= 1")
    ]


def _against(what: str, ours: Rates, rates: Mapping[str, Rates], figure: _Figure = _rate, goal: str = "") -> list[Row]:
    return [
        Row(what, figure(ours), "/s", beside=peer.name, baseline=figure(rates[peer.name]), goal=goal)
        if peer.name in rates
        else Row(what, figure(ours), "/s", beside=f"{peer.name} (not installed: make bench-pipeline)")
        for peer in contest.PEER_CONTENDERS
    ]


def _first_words(seen: first_words.FirstWords) -> list[Row]:
    latencies = [one.latency for one in seen.asked]
    return [
        Row(
            f"request to first words by SSE, p{percent}",
            1000 * percentile(latencies, percent),
            "ms",
            beside="goal",
            baseline=goal_ms,
            goal="< 1",
        )
        for percent, goal_ms in ((50, 25.0), (99, 100.0))
    ]


def _watching(seen: watches.Watching) -> list[Row]:
    what = f"{seen.watchers} watch {seen.subjects} stor{'y' if seen.subjects == 1 else 'ies'}"
    return [
        Row(f"{what}: memory each", seen.bytes_each / 1024, "KiB"),
        Row(f"{what}: delivery, p50", 1000 * percentile(seen.latencies, 50), "ms"),
        Row(f"{what}: delivery, p99", 1000 * percentile(seen.latencies, 99), "ms"),
        Row(f"{what}: resume, p50", 1000 * percentile(seen.resumed, 50), "ms"),
        Row(f"{what}: resume, p99", 1000 * percentile(seen.resumed, 99), "ms"),
    ]


def _about_rates(rates: Mapping[str, Rates]) -> list[str]:
    costs = "; ".join(
        f"{name} " + ", ".join(f"{part} {1000 * seconds:.2f}" for part, seconds in each.parts.items())
        for name, each in rates.items()
    )
    return [
        f"Jobs and events: {_WORKERS} worker processes of {_SLOTS} slots and one process that hands in, for each alike. 'Inbox "
        "alone' is the job queues' own unit of work: into Redis, run, acknowledged after the run. 'Durable' is handed in by a "
        "commit to Postgres with fsync, and relayed: neither the loss of Redis nor anybody's death loses it. 'Recorded' adds "
        "a record of the event in the commit of its effect, so that the effect happens once; a no-op has none. The others make "
        "neither commit. Events are handled in batches, by a handler that takes many at once; jobs each by themselves.",
        f"Processor time of a job in ms, by who used it (workers relay as well): {costs}.",
    ]


def _about_stories(used: Mapping[str, float]) -> str:
    parts = ", ".join(f"{name} {1000 * seconds:.1f}" for name, seconds in used.items())
    return (
        "A whole story is: CreateStory over gRPC, outbox, inbox, attempt, title, text, completion, a second event, an in-app "
        f"notification and a mail that an SMTP server took. Its processor time in ms: {parts}."
    )


def _about_words(seen: first_words.FirstWords) -> list[str]:
    steps = ", ".join(
        f"{name} {1000 * seconds:.1f}" for name, seconds in sorted(seen.steps.items(), key=lambda step: step[1])
    )
    return [
        f"First words: {len(seen.asked)} stories at {first_words.A_SECOND} requests/s, {seen.failed} failed; the composer writes "
        f"without a pause. Medians from the request to each step, in ms: {steps}."
    ]


def _about_watching(seen: watches.Watching) -> str:
    return (
        f"{seen.watchers} watches of {seen.subjects}: open after {seen.opened_seconds:.1f} s, {seen.refused} refused; every story "
        f"got words once a second; {len(seen.latencies)} deliveries, {seen.lost} lost; the story service used "
        f"{seen.cpu_share:.2f} processors. The watchers' process, on the same cores, is part of the time."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="half a second, one round, few watchers: shows that it runs"
    )
    parser.add_argument("--jobs", action="store_true", help="jobs and events alone, without the mesh")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    machine, stolen = this_machine(), stolen_seconds()
    try:
        with tempfile.TemporaryDirectory(prefix="storymesh-bench-") as folder:
            measuring = measure_jobs if options.jobs else measure
            rows, notes = uvloop.run(measuring(Path(folder) / "mesh", _QUICK if options.quick else _DEFAULT))
    except LocalError as failure:
        print(failure, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    notes.append(
        f"The host kept {stolen_seconds() - stolen:.0f} s of processor time for others (steal) during the run."
    )
    if options.json:
        print(as_json(machine, rows, notes))
    else:
        show(Console(soft_wrap=True, width=None if sys.stdout.isatty() else _PRINTED_WIDTH), machine, rows, notes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
