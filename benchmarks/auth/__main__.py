"""Runs every measurement and prints one table."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import uvloop
from rich.console import Console
from storymesh.auth.v1 import session_service_pb2 as pb
from storymesh.auth.v1.session_service_pb2_grpc import SessionServiceStub

from benchmarks.machine import percentile, stolen_seconds, this_machine
from benchmarks.report import Row, as_json, show
from local.failures import LocalError

from . import floods, load, logins, refreshes, verifications
from .running import RunningAuth, running_auth

_PEOPLE = 32
_MOST_SESSIONS = 200
_PRINTED_WIDTH = 132


@dataclass(frozen=True)
class Length:
    """Duration of each measurement, and number of rounds."""

    seconds: float
    rounds: int
    people: int = _PEOPLE


async def measure(state_dir: Path, length: Length) -> tuple[list[Row], list[str]]:
    """Rows of the table, and notes for its reader."""
    load.disable_garbage_collection()
    with load.process() as callers:
        async with running_auth(state_dir, people=length.people) as auth:
            signed_in = await logins.measure(auth, callers, rounds=length.rounds, seconds=length.seconds)
            refreshed = await refreshes.measure(
                auth, callers, signed_in.seen.refresh_tokens[-_MOST_SESSIONS:], seconds=length.seconds
            )
            async with grpc.aio.insecure_channel(auth.target) as channel:
                access_token = await _access_token(channel, auth)
                verified = await verifications.measure(channel, access_token, seconds=length.seconds / 2)
            flooded = await floods.measure(
                auth,
                callers,
                access_token,
                a_second=floods.TIMES * statistics.median(signed_in.raw_rates),
                rounds=min(length.rounds, 2),
                seconds=length.seconds,
            )
    rows = [*_logins(signed_in), *_refreshes(refreshed), *_verifications(verified), *_floods(flooded)]
    return rows, [*_about_logins(signed_in), *_about_floods(flooded)]


async def _access_token(channel: grpc.aio.Channel, auth: RunningAuth) -> str:
    person = auth.people[0]
    request = pb.CreateSessionRequest(login=person.login, password=person.password)
    return (await SessionServiceStub(channel).CreateSession(request, timeout=30)).tokens.access_token


def _logins(seen: logins.Logins) -> list[Row]:
    return [
        Row(
            "sign-ins by password",
            statistics.median(seen.rates),
            "/s",
            beside="bare argon2id verify",
            baseline=statistics.median(seen.raw_rates),
            goal=">= 0.9",
        ),
        Row("sign-in, p50", 1000 * percentile(seen.seen.latencies, 50), "ms"),
        Row("sign-in, p99", 1000 * percentile(seen.seen.latencies, 99), "ms"),
    ]


def _refreshes(seen: load.Seen) -> list[Row]:
    return [
        Row("refreshes", seen.rate, "/s"),
        Row("refresh, p50", 1000 * percentile(seen.latencies, 50), "ms"),
        Row("refresh, p99", 1000 * percentile(seen.latencies, 99), "ms"),
    ]


def _verifications(seen: verifications.Verifications) -> list[Row]:
    return [
        Row("access token, whole check", seen.kit, "us", beside="PyJWT decode", baseline=seen.pyjwt),
        Row("access token, whole check", seen.kit, "us", beside="bare ES256 verify", baseline=seen.signature),
        Row("access token, seen before", seen.kit_again, "us", beside="bare ES256 verify", baseline=seen.signature),
        Row("... of it, asking for revocations", seen.revocation_check, "us"),
    ]


def _floods(seen: floods.Floods) -> list[Row]:
    def row(name: str, flooded: Sequence[float], quiet: Sequence[float]) -> Row:
        return Row(
            f"{name} in a flood, p99",
            1000 * percentile(flooded, 99),
            "ms",
            beside="when quiet, p99",
            baseline=1000 * percentile(quiet, 99),
            goal="< 3",
        )

    return [
        row("GetAccount", seen.flooded.get_account, seen.quiet.get_account),
        row("GetJwks", seen.flooded.get_jwks, seen.quiet.get_jwks),
    ]


def _about_logins(seen: logins.Logins) -> list[str]:
    parts = ", ".join(f"{name} {1000 * seconds:.1f}" for name, seconds in seen.cpu_seconds.items())
    own = 1000 * seen.seen.own_cpu_seconds / seen.seen.calls
    everything = sum(seen.cpu_seconds.values()) + seen.seen.own_cpu_seconds / seen.seen.calls
    return [
        f"Processor time of a sign-in in ms: {parts}, the callers' process {own:.1f}; of a bare verify: "
        f"{1000 * seen.raw_cpu_seconds:.1f}. By processor time alone the ratio is {seen.raw_cpu_seconds / everything:.2f}.",
        f"{seen.seen.answered} sign-ins were answered, {seen.seen.refused} refused (OVERLOADED), {seen.seen.failed} failed.",
    ]


def _about_floods(seen: floods.Floods) -> list[str]:
    crowd = seen.flood
    return [
        f"In the floods {crowd.calls} sign-ins came; {crowd.answered} were answered, {crowd.refused} refused, "
        f"{crowd.failed} failed, and the last of all was dealt with after {crowd.seconds:.0f} s; auth used "
        f"{seen.auth_cpu_share:.2f} and the crowd's process {crowd.own_cpu_seconds / crowd.seconds:.2f} processors.",
        f"Of the other calls {seen.flooded.failed} failed in a flood, {seen.quiet.failed} when quiet.",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.auth", description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each part is measured at a time (4)")
    parser.add_argument("--rounds", type=int, default=5, help="how often in turns (5)")
    parser.add_argument("--quick", action="store_true", help="half a second and one round: shows that it runs, no more")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    length = Length(0.5, 1, people=4) if options.quick else Length(options.seconds, options.rounds)
    machine, stolen = this_machine(), stolen_seconds()
    try:
        with tempfile.TemporaryDirectory(prefix="storymesh-bench-") as folder:
            rows, notes = uvloop.run(measure(Path(folder) / "mesh", length))
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
