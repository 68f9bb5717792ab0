"""Composition root: `python -m services.ratelimit serve` and `check FILE`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from foreign import rls_pb2, rls_pb2_grpc

from kit.rpc.server import Server
from kit.runtime import process

from .config import RateLimitSettings
from .model.rules import RuleSet
from .operations.buckets import Buckets
from .operations.classes import load_fitting
from .operations.reload import LiveRules
from .servicer import RateLimits
from .store.buckets import BucketStore, connect
from .store.rules_file import BadRules

_SERVICE = rls_pb2.DESCRIPTOR.services_by_name["RateLimitService"].full_name


async def serve(settings: RateLimitSettings) -> None:
    try:
        rules = LiveRules(settings.rate_limit_rules, load_fitting)
    except BadRules as error:
        sys.exit(str(error))
    redis = connect(settings.redis_url.get_secret_value())
    buckets = Buckets(BucketStore(redis), rules.current, redis_seconds=settings.rate_limit_redis_seconds)
    # Redis is optional: while it is down every rule has its answer, which Envoy would not get from servers it holds for dead.
    server = Server(settings, required={}, optional={"redis": redis.ping})
    server.background(rules.follow)
    add = partial(rls_pb2_grpc.add_RateLimitServiceServicer_to_server, RateLimits(buckets))
    await server.run(open_services={_SERVICE: add})
    await redis.aclose()


def check(path: Path) -> None:
    """Prints the rules as they are understood, or ends the process with what is wrong with them."""
    try:
        rules = load_fitting(path)
    except BadRules as error:
        sys.exit(str(error))
    print(f"{path}: {len(rules.rules)} rules of the domain {rules.domain}; on_no_match: {rules.on_no_match}")
    print(_table(rules))


def _table(rules: RuleSet) -> str:
    rows = [
        (
            rule.name,
            " ".join(map(str, rule.match)),
            f"{rule.limit.requests} per {rule.limit.period_seconds} s",
            f"burst {rule.limit.burst}",
            f"{rule.on_redis_down} when Redis is down",
        )
        for rule in rules.rules
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


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
