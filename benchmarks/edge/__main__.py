"""Runs every measurement and prints one table."""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import uvloop
from rich.console import Console

from benchmarks.auth import load as loads
from benchmarks.machine import percentile, stolen_seconds, this_machine
from benchmarks.report import Row, as_json, show
from local.failures import LocalError

from . import load
from .edges import BY_QUOTAS, NO_LIMIT, PARTS
from .running import SERVERS, Running, another_edge, fastapi, fastapi_installed, running

_CONNECTIONS = 16
_PEOPLE = _CONNECTIONS
"""Each with a story of their own: calls that meet share what they read, and would share more of one story."""
_SHARED = ("postgres", "redis")
_PEER = "FastAPI"
_PRINTED_WIDTH = 132
_BODY = (
    b'{"preferences":["the sea","fog"],"theme":"a lighthouse","prompt":"It ends well.","length":"STORY_LENGTH_SHORT"}'
)


@dataclass(frozen=True)
class Length:
    """Duration and number of rounds of each measurement."""

    seconds: float
    rounds: int


_DEFAULT = Length(3.0, 4)
_QUICK = Length(0.3, 1)


@dataclass(frozen=True)
class Contest:
    """Requests to one port, and the processes whose processor time they cost."""

    port: int
    requests: Sequence[bytes]
    processes: Mapping[str, Callable[[], float]]
    """Processor time that each has used, in seconds, by name."""
    status: int = 200


@dataclass
class Cost:
    """Results of one contest."""

    milliseconds: list[dict[str, float]] = field(default_factory=list)
    """Processor time of a request by process, for each round."""
    rates: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)

    def of(self, process: str) -> float:
        return statistics.median(each[process] for each in self.milliseconds)

    @property
    def altogether(self) -> float:
        return statistics.median(sum(each.values()) for each in self.milliseconds)

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    def percentile(self, percent: int) -> float:
        """Latency in ms."""
        return 1000 * percentile(self.latencies, percent)


async def measure(state_dir: Path, length: Length, *, parts: bool, processes: int) -> tuple[list[Row], list[str]]:
    """Rows of the table, and notes for its reader."""
    with loads.process() as others:
        async with running(state_dir, people=_PEOPLE) as mesh, AsyncExitStack() as stack:
            contests = await _contests(mesh, stack, parts=parts, processes=processes)
            costs = {name: Cost() for name in contests}
            for name in contests:
                await _round(others, contests[name], min(length.seconds, 1.0), Cost())
            for _ in range(length.rounds):
                for name, contest in contests.items():
                    await _round(others, contest, length.seconds, costs[name])
                    await mesh.forget_requests()
    return _rows(costs), _notes(processes)


async def _contests(mesh: Running, stack: AsyncExitStack, *, parts: bool, processes: int) -> dict[str, Contest]:
    gets = [load.get(f"/v1/stories/{reader.story_id}", reader.token) for reader in mesh.readers]
    posts = [load.post("/v1/stories", _BODY, reader.token) for reader in mesh.readers]
    ours = {name: _clock(mesh, name) for name in SERVERS}
    shared = {name: ours[name] for name in _SHARED}
    contests = {
        "GET": Contest(mesh.port, gets, ours),
        "POST": Contest(mesh.port, posts, ours),
        "health": Contest(mesh.port, [load.get("/health")], {"envoy": ours["envoy"]}),
    }
    if fastapi_installed():
        peer = await stack.enter_async_context(fastapi(mesh, processes=processes))
        for name in ("GET", "POST"):
            measured = {_PEER: peer.cpu_seconds, **shared}
            contests[f"{_PEER} {name}"] = Contest(peer.port, contests[name].requests, measured)
    deciding = await stack.enter_async_context(another_edge(mesh, "edge-by-quotas", PARTS["nothing"], BY_QUOTAS))
    contests["by quotas"] = Contest(deciding.port, gets, {**ours, "envoy": deciding.cpu_seconds})
    for number, (part, change) in enumerate(PARTS.items()):
        if parts or part == NO_LIMIT:
            edge = await stack.enter_async_context(another_edge(mesh, f"edge-{number}", change))
            contests[f"without {part}"] = Contest(edge.port, gets, {**ours, "envoy": edge.cpu_seconds})
    return contests


def _clock(mesh: Running, name: str) -> Callable[[], float]:
    return lambda: mesh.cpu_seconds(name)


async def _round(others: ProcessPoolExecutor, contest: Contest, seconds: float, cost: Cost) -> None:
    before = {name: used() for name, used in contest.processes.items()}
    seen = await asyncio.get_running_loop().run_in_executor(
        others, load.closed_loop, contest.port, contest.requests, _CONNECTIONS, seconds
    )
    used = {name: used() - before[name] for name, used in contest.processes.items()}
    if seen.statuses.keys() != {contest.status}:
        raise RuntimeError(f"not every request was answered with {contest.status}: {Counter(seen.statuses)}")
    cost.milliseconds.append({name: 1000 * each / len(seen.latencies) for name, each in used.items()})
    cost.rates.append(seen.rate)
    cost.latencies += seen.latencies


def _rows(costs: Mapping[str, Cost]) -> list[Row]:
    rows = []
    for name, what, goal in (("GET", "GET a story", "<= 0.6"), ("POST", "POST a story", "<= 1.0")):
        ours, peer = costs[name], costs.get(f"{_PEER} {name}")
        beside = _PEER if peer else f"{_PEER} (not installed: make bench-edge)"
        rows += [
            Row(f"{what}, processor time", ours.altogether, "ms", beside, peer.altogether if peer else None, goal),
            *(Row(f"{what}, of it in {each}", ours.of(each), "ms", *_part(peer, each)) for each in SERVERS),
            Row(f"{what}, requests", ours.rate, "/s", beside, peer.rate if peer else None),
            Row(f"{what}, p50", ours.percentile(50), "ms", beside, peer.percentile(50) if peer else None),
            Row(f"{what}, p99", ours.percentile(99), "ms", beside, peer.percentile(99) if peer else None, "< 1"),
        ]
    whole, unlimited, quotas = costs["GET"], costs[f"without {NO_LIMIT}"], costs["by quotas"]
    rows += [
        Row("Envoy's own answer (/health), processor time", costs["health"].altogether, "ms"),
        Row("Envoy's own answer (/health), requests", costs["health"].rate, "/s"),
        Row("GET without the limits, processor time", unlimited.altogether, "ms", "GET a story", whole.altogether),
        Row("GET without the limits, requests", unlimited.rate, "/s", "GET a story", whole.rate),
        Row("GET by quotas, processor time", quotas.altogether, "ms", "without the limits", unlimited.altogether),
        Row("GET by quotas, of it in envoy", quotas.of("envoy"), "ms", "without the limits", unlimited.of("envoy")),
        Row("GET by quotas, requests", quotas.rate, "/s", "without the limits", unlimited.rate, ">= 0.9"),
    ]
    for part in PARTS:
        cost, complete = costs.get(f"without {part}"), costs.get("without nothing")
        if cost and complete:
            rows.append(
                Row(f"Envoy's part of a GET, without {part}", cost.of("envoy"), "ms", "with all", complete.of("envoy"))
            )
    return rows


def _part(peer: Cost | None, process: str) -> tuple[str, float | None]:
    return (_PEER, peer.of(process)) if peer and process in _SHARED else ("", None)


def _notes(processes: int) -> list[str]:
    return [
        f"{_CONNECTIONS} connections of HTTP/1.1, each with one request in flight, from a process of its own, which is not "
        "counted. Processor time is that of all servers. Contenders take turns. As many people ask, each for a story of their own.",
        f"{_PEER}: uvicorn with uvloop and httptools in {processes} process(es), SQLAlchemy with psycopg, slowapi with fixed "
        "windows on the same Redis, the same table and query in the same Postgres. The mesh is one process of each service.",
        "Both check the access token (ES256), a limit per address and the fields' rules, and write a line of log. The mesh alone: "
        "a limit per person, all buckets debited or none, revocation of tokens, quotas, the outbox event of a requested story, "
        "checks of headers and bodies, a trace context and metrics for each call, and two lines of log.",
        "By quotas: an edge that decides by itself about the class of this call, with tokens that the limiter hands it (RLQS).",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.edge", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a third of a second, one round: shows that it runs")
    parser.add_argument("--parts", action="store_true", help="measure Envoy with each of its parts left out")
    parser.add_argument("--seconds", type=float, help="duration of a round")
    parser.add_argument("--rounds", type=int, help="number of rounds")
    parser.add_argument("--processes", type=int, default=1, help=f"processes of {_PEER} (default: 1)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    chosen = _QUICK if options.quick else _DEFAULT
    length = Length(options.seconds or chosen.seconds, options.rounds or chosen.rounds)
    machine, stolen = this_machine(), stolen_seconds()
    try:
        with tempfile.TemporaryDirectory(prefix="storymesh-bench-") as folder:
            rows, notes = uvloop.run(
                measure(Path(folder) / "mesh", length, parts=options.parts, processes=options.processes)
            )
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
