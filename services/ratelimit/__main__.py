"""Builds the rate limiter's process, and checks rules offline."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from foreign.rlqs_pb2_grpc import add_RateLimitQuotaServiceServicer_to_server
from storymesh.ops.v1.rate_limit_service_pb2_grpc import add_RateLimitServiceServicer_to_server
from storymesh.ratelimit.v1.lease_service_pb2_grpc import add_LeaseServiceServicer_to_server
from storymesh.ratelimit.v1.reservation_service_pb2_grpc import add_ReservationServiceServicer_to_server

from kit.data.redis import liveness
from kit.rpc.resources import Resources
from kit.rpc.server import Server
from kit.runtime import process

from .commands import check, compare, convert, explain
from .config import RateLimitSettings
from .operations import operations
from .operations.classes import EDGE_DOMAIN
from .servicer import METHOD, SERVICE, LeaseServicer, RateLimits, RateLimitServicer, ReservationServicer
from .servicer.assignments import REPORT_BYTES, AssignmentStreams
from .store.buckets import MOST_CALLS
from .store.rules_file import BadRules


async def serve(settings: RateLimitSettings) -> None:
    async with Resources("ratelimit", settings) as resources:
        try:
            ops = operations(settings, resources)
        except BadRules as error:
            sys.exit(str(error))
        # Redis is optional for readiness: without it each rule states its answer, which Envoy could not get from an unhealthy
        # server. Nor do rules that cannot be read take it away: those in force stay.
        server = Server(
            settings,
            required={},
            optional={"redis": resources.redis.ping, "rules": ops.rules.check},
            message_bytes=REPORT_BYTES,
        )
        ops.buckets.counts.show_in(server.metrics)
        ops.rules.show_in(server.metrics)
        server.add_batched(SERVICE, METHOD, RateLimits(ops.buckets).answer, most=MOST_CALLS)
        ops.leases.show_in(server.metrics)
        server.add(add_LeaseServiceServicer_to_server, LeaseServicer(ops.leases))
        server.add(add_ReservationServiceServicer_to_server, ReservationServicer(ops.reservations))
        server.add(add_RateLimitServiceServicer_to_server, RateLimitServicer(ops))
        server.add_foreign(
            add_RateLimitQuotaServiceServicer_to_server,
            AssignmentStreams(ops.assignments, server.stopping),
            traced=False,
        )
        ops.assignments.show_in(server.metrics)
        server.background(ops.assignments.follow)
        server.background(ops.rules.follow)
        server.background(ops.overrides.follow)
        server.background(ops.offenders.follow)
        server.background(ops.recordings.follow)
        server.background(liveness(resources.redis).watch)
        # Only for administrators' calls: checks need nothing of auth.
        server.background(resources.revocation_feed.run)
        await server.run(resources.access_tokens, resources.service_tokens)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m services.ratelimit",
        description="The ratelimit service. Settings come from STORYMESH_* environment variables; see README.md.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("serve", help="answer Envoy's checks")
    checker = commands.add_parser("check", help="validate rules off-line and print them")
    checker.add_argument("file", type=Path, help="the YAML file, or a folder of them")
    explainer = commands.add_parser("explain", help="say which rules apply to a call, and why others do not")
    explainer.add_argument("file", type=Path, help="the YAML file, or a folder of them")
    explainer.add_argument("descriptor", nargs="+", help="such as class=default,client_ip=192.0.2.7/32")
    explainer.add_argument("--domain", default=EDGE_DOMAIN, help=f"the domain of the call; {EDGE_DOMAIN} unless given")
    comparer = commands.add_parser("compare", help="say which recorded calls other rules would decide otherwise")
    comparer.add_argument("current", type=Path, help="the rules in force")
    comparer.add_argument("candidate", type=Path, help="the rules to be tried")
    comparer.add_argument("recording", type=Path, help="a JSON object a line; docs/rate-limits.md has the form")
    importer = commands.add_parser("import", help="print a file of envoyproxy/ratelimit as rules")
    importer.add_argument("file", type=Path, help="the YAML file")
    chosen = parser.parse_args(arguments)
    if chosen.command == "check":
        check(chosen.file)
    elif chosen.command == "explain":
        explain(chosen.file, chosen.descriptor, chosen.domain)
    elif chosen.command == "compare":
        compare(chosen.current, chosen.candidate, chosen.recording)
    elif chosen.command == "import":
        convert(chosen.file)
    else:
        process.main("ratelimit", serve=process.Command("answer Envoy's checks", RateLimitSettings, serve))


if __name__ == "__main__":
    main()
