"""Runs every measurement and prints one table."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from benchmarks.machine import cpu_seconds, percentile, stolen_seconds, this_machine
from benchmarks.report import Row, as_json, show
from local.failures import LocalError

from . import contenders, load
from .contenders import Limiter

_PEER = "envoyproxy/ratelimit"
_GOALS = {1: ">= 1.0", 16: ">= 1.5", 64: ">= 2", 256: ">= 2"}
"""Goals for the ratio of checks a second, by the number of checks in flight."""
_QUOTAS_GOAL = ">= 0.9"
_CONNECTIONS = 16
_PRINTED_WIDTH = 132


@dataclass(frozen=True)
class Length:
    """Duration and number of rounds of each measurement."""

    seconds: float
    rounds: int


_DEFAULT = Length(3.0, 3)
_QUICK = Length(0.3, 1)


@dataclass
class Cost:
    """Results of one contender."""

    rates: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    """In ms, for each round."""
    own: list[float] = field(default_factory=list)
    """Microseconds of the contender's processor time a check, for each round."""
    redis: list[float] = field(default_factory=list)
    generator: list[float] = field(default_factory=list)


def measure(folder: Path, length: Length) -> tuple[list[Row], list[str]]:
    """Rows of the table, and notes for its reader."""
    load.require()
    with contenders.mesh(folder / "mesh") as mesh, ExitStack() as stack:
        limiters = {"ours": contenders.ours(mesh)}
        if contenders.peer_installed():
            limiters[_PEER] = stack.enter_context(contenders.peer(mesh, folder))
        ports = {name: stack.enter_context(contenders.edge(folder, limiter)) for name, limiter in limiters.items()}
        ports["quotas"] = stack.enter_context(contenders.edge(folder, limiters["ours"], quotas=True))
        ports["no limit"] = stack.enter_context(contenders.edge(folder, None))

        def redis_seconds() -> float:
            return cpu_seconds([mesh.pid("redis")])

        costs = {(name, in_flight): Cost() for name in limiters for in_flight in _GOALS}
        rates: dict[str, list[float]] = {name: [] for name in ports}
        for limiter in limiters.values():
            _round(limiter, folder, Cost(), redis_seconds, in_flight=16, seconds=min(length.seconds, 1.0))
        for _ in range(length.rounds):
            for in_flight in _GOALS:
                for name, limiter in limiters.items():
                    cost = costs[name, in_flight]
                    _round(limiter, folder, cost, redis_seconds, in_flight=in_flight, seconds=length.seconds)
            for name, port in ports.items():
                seen = load.requests(port, folder, connections=_CONNECTIONS, seconds=length.seconds)
                if seen.failed:
                    raise LocalError(f"{seen.failed} requests failed at the edge with {name}")
                rates[name].append(seen.rate)
    rows = [row for in_flight in _GOALS for row in _rows(in_flight, costs)]
    unlimited = statistics.median(rates.pop("no limit"))
    rows += [
        Row(
            f"requests through Envoy, {name}",
            statistics.median(each),
            "/s",
            "no limit",
            unlimited,
            _QUOTAS_GOAL if name == "quotas" else "",
        )
        for name, each in rates.items()
    ]
    return rows, _notes()


def _round(
    limiter: Limiter, folder: Path, cost: Cost, redis_seconds: Callable[[], float], *, in_flight: int, seconds: float
) -> None:
    whole = contenders.response(limiter.address).ByteSize()
    own, redis = limiter.cpu_seconds(), redis_seconds()
    seen = load.checks(limiter.address, folder, in_flight=in_flight, seconds=seconds)
    own, redis = limiter.cpu_seconds() - own, redis_seconds() - redis
    # An error has an HTTP status of 200 and no message, and would look like a quick answer.
    if seen.failed or seen.data_bytes < 0.9 * whole * seen.answers:
        raise LocalError(f"{limiter.address} did not answer every check")
    cost.rates.append(seen.rate)
    cost.p99.append(1000 * percentile(seen.latencies, 99))
    cost.own.append(1e6 * own / seen.answers)
    cost.redis.append(1e6 * redis / seen.answers)
    cost.generator.append(1e6 * seen.own_cpu_seconds / seen.answers)


def _rows(in_flight: int, costs: dict[tuple[str, int], Cost]) -> list[Row]:
    ours, peer = costs["ours", in_flight], costs.get((_PEER, in_flight))
    beside = _PEER if peer else f"{_PEER} (not built: Go is not installed)"

    def row(what: str, unit: str, values: Callable[[Cost], list[float]], goal: str = "") -> Row:
        baseline = statistics.median(values(peer)) if peer else None
        return Row(f"{in_flight} in flight: {what}", statistics.median(values(ours)), unit, beside, baseline, goal)

    return [
        row("checks", "/s", lambda cost: cost.rates, _GOALS[in_flight]),
        row("p99", "ms", lambda cost: cost.p99, "<= 1.0"),
        row("processor time a check", "us", lambda cost: cost.own),
        row("... in Redis", "us", lambda cost: cost.redis),
        row("... in the generator", "us", lambda cost: cost.generator),
    ]


def _notes() -> list[str]:
    return [
        "Each check has two descriptors, (class, client_ip) and (class, user), both with a bucket, and all are admitted. Limiters "
        "take turns on one Redis; medians of the rounds. h2load sends over up to four connections, each for a person of its own; "
        "all run on the same cores.",
        f"Ours debits both token buckets or none; {_PEER} counts in fixed windows, each by itself. Both answer with headers that "
        "tell the limit.",
        "Requests that are the same byte for byte are decoded once and kept by our limiter, as those of one person in one class of "
        "methods are.",
        f"Through Envoy: {_CONNECTIONS} connections of HTTP/1.1 with one request in flight each, to an Envoy of two threads that "
        "asks the limiter about each request and answers from a listener of its own. With quotas it decides by itself, by "
        "address and by person, with tokens that our limiter hands it.",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ratelimit", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a third of a second, one round: shows that it runs")
    parser.add_argument("--seconds", type=float, help="duration of a round")
    parser.add_argument("--rounds", type=int, help="number of rounds")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    chosen = _QUICK if options.quick else _DEFAULT
    length = Length(options.seconds or chosen.seconds, options.rounds or chosen.rounds)
    machine, stolen = this_machine(), stolen_seconds()
    try:
        with tempfile.TemporaryDirectory(prefix="storymesh-bench-") as folder:
            rows, notes = measure(Path(folder), length)
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
