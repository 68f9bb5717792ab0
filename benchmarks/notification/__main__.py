"""Runs every measurement and prints one table."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop
from rich.console import Console

from benchmarks.machine import percentile, stolen_seconds, this_machine
from benchmarks.pipeline.running import running as running_for_watchers
from benchmarks.pipeline.watches import Watching
from benchmarks.report import Row, as_json, show
from kit.data import redis as kit_redis
from local.failures import LocalError

from . import mails, watches
from .running import running

_SLOTS = 10
"""Mails that a worker sends at a time, the mesh's and Celery's."""
_PRINTED_WIDTH = 132
_GOAL_MS = 30.0


@dataclass(frozen=True)
class Length:
    """Sizes of the measurements."""

    mails: int
    rounds: int
    latencies: int
    watchers: int
    people: int
    """Number of people whom the watchers are spread over, if they do not all watch one."""
    seconds: float


_DEFAULT = Length(mails=600, rounds=3, latencies=300, watchers=2000, people=20, seconds=6.0)
_QUICK = Length(mails=40, rounds=1, latencies=20, watchers=40, people=2, seconds=1.0)


async def measure(state_dir: Path, length: Length) -> tuple[list[Row], list[str]]:
    """Rows of the table, and notes for its reader."""
    async with running(state_dir) as mesh, kit_redis.connect(mesh.redis_url) as redis:
        seen = {
            workers: await mails.rates(
                mesh, redis, workers=workers, slots=_SLOTS, mails=length.mails, rounds=length.rounds
            )
            for workers in (1, 2)
        }
        times = await mails.latencies(mesh, mails=length.latencies, pause_seconds=0.05, slots=_SLOTS)
    async with running_for_watchers(state_dir.with_name("watched"), people=length.people) as watched:
        watching = [
            await watches.measure(
                watched,
                watchers=length.watchers,
                people=people,
                seconds=length.seconds,
                resumes=min(length.watchers, 100),
            )
            for people in (1, length.people)
        ]
    rows = [row for workers, by_name in seen.items() for row in _about_rates(workers, by_name)]
    rows += [
        Row("event to the mail server's consent, p50", 1000 * percentile(times, 50), "ms", "goal", _GOAL_MS, "< 1"),
        Row("event to the mail server's consent, p99", 1000 * percentile(times, 99), "ms"),
        *(row for each in watching for row in _watching(each)),
    ]
    notes = [
        f"Mails with codes to the local mail sink. Workers of {_SLOTS} mails at a time; {length.mails} are handed in at once. "
        "Processor time is that of the workers alone: Postgres, Redis and the mail server, on the same cores, are not counted. "
        "The mesh's worker records each mail durably in Postgres (fsync) before and after it is sent; Celery's keeps a message in "
        "Redis until its task ends, and sends over a connection for each mail, as Django's send_mail does.",
        "From an event's commit in auth's outbox: relay, inbox, decision, claim, rendering, SMTP. One mail every 50 ms.",
        *map(_about_watching, watching),
    ]
    return rows, notes


def _about_rates(workers: int, seen: Mapping[str, mails.Rates]) -> list[Row]:
    what = f"{workers} worker{'s' if workers > 1 else ''}"
    ours, peer = seen[mails.OURS], seen.get(mails.CELERY)
    beside = mails.CELERY if peer else f"{mails.CELERY} (not installed: make bench-notification)"
    return [
        Row(f"mails, {what}", ours.rate, "/s", beside, peer.rate if peer else None),
        Row(
            f"mails per processor second, {what}",
            ours.mails_per_cpu_second,
            "/s",
            beside,
            peer.mails_per_cpu_second if peer else None,
            ">= 1",
        ),
    ]


def _watching(seen: Watching) -> list[Row]:
    what = f"{seen.watchers} watch {seen.subjects} {'person' if seen.subjects == 1 else 'people'}"
    return [
        Row(f"{what}: memory each", seen.bytes_each / 1024, "KiB"),
        Row(f"{what}: change to watcher, p50", 1000 * percentile(seen.latencies, 50), "ms"),
        Row(f"{what}: change to watcher, p99", 1000 * percentile(seen.latencies, 99), "ms"),
        Row(f"{what}: resume, p50", 1000 * percentile(seen.resumed, 50), "ms"),
        Row(f"{what}: resume, p99", 1000 * percentile(seen.resumed, 99), "ms"),
    ]


def _about_watching(seen: Watching) -> str:
    return (
        f"{seen.watchers} watches of {seen.subjects}: open after {seen.opened_seconds:.1f} s, {seen.refused} refused; each person "
        f"is notified once a second, timed from before the commit; {len(seen.latencies)} deliveries, {seen.lost} lost; the service "
        f"used {seen.cpu_share:.2f} processors. The watchers' process, on the same cores, is part of the time."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.notification", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few mails and one round: shows that it runs")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    machine, stolen = this_machine(), stolen_seconds()
    try:
        with tempfile.TemporaryDirectory(prefix="storymesh-bench-") as folder:
            rows, notes = uvloop.run(measure(Path(folder) / "mesh", _QUICK if options.quick else _DEFAULT))
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
