"""Builds the rate limiter's process, and checks rules offline."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kit.data.redis import liveness
from kit.rpc.resources import Resources
from kit.rpc.server import Server
from kit.runtime import process

from .commands import check
from .config import RateLimitSettings
from .operations import operations
from .servicer import METHOD, SERVICE, RateLimits
from .store.buckets import MOST_CALLS
from .store.rules_file import BadRules


async def serve(settings: RateLimitSettings) -> None:
    async with Resources("ratelimit", settings) as resources:
        try:
            ops = operations(settings, resources)
        except BadRules as error:
            sys.exit(str(error))
        # Redis is optional for readiness: without it each rule states its answer, which Envoy could not get from an unhealthy
        # server.
        server = Server(settings, required={}, optional={"redis": resources.redis.ping})
        server.add_batched(SERVICE, METHOD, RateLimits(ops.buckets).answer, most=MOST_CALLS)
        server.background(ops.rules.follow)
        server.background(liveness(resources.redis).watch)
        await server.run()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m services.ratelimit",
        description="The ratelimit service. Settings come from STORYMESH_* environment variables; see README.md.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("serve", help="answer Envoy's checks")
    checker = commands.add_parser("check", help="validate a rules file off-line and print its rules")
    checker.add_argument("file", type=Path, help="the YAML file")
    chosen = parser.parse_args(arguments)
    if chosen.command == "check":
        check(chosen.file)
    else:
        process.main("ratelimit", serve=process.Command("answer Envoy's checks", RateLimitSettings, serve))


if __name__ == "__main__":
    main()
