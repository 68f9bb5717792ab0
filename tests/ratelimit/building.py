"""Short constructors of rules, descriptors and requests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from foreign import rls_pb2
from google.protobuf import wrappers_pb2

import services.ratelimit
from services.ratelimit.model import Limit
from services.ratelimit.model.rules import DescriptorEntry, OnNoMatch, OnRedisDown, Rule, RuleSet
from services.ratelimit.operations.buckets import Buckets, Descriptor

DOMAIN = "storymesh"
RULES_FOLDER = Path(next(iter(services.ratelimit.__path__))) / "rules"
PRODUCTION, LOCAL = RULES_FOLDER / "production.yaml", RULES_FOLDER / "local.yaml"

BucketsFor = Callable[[RuleSet], Buckets]


def rule(
    name: str = "a-rule",
    match: str = "class=default client_ip",
    *,
    limit: Limit | None = None,
    on_redis_down: OnRedisDown = OnRedisDown.OPEN,
) -> Rule:
    """A rule. `match` holds entries such as `class=default`, or `client_ip` for any value."""
    entries = (entry.partition("=") for entry in match.split())
    return Rule(
        name,
        tuple(DescriptorEntry(key, value if equals else None) for key, equals, value in entries),
        limit or Limit(requests=60, period_seconds=60, burst=3),
        on_redis_down,
    )


def rule_set(*rules: Rule, on_no_match: OnNoMatch = OnNoMatch.ALLOW) -> RuleSet:
    return RuleSet(DOMAIN, on_no_match, rules)


def descriptor(*entries: tuple[str, str], hits: int = 1) -> Descriptor:
    return Descriptor(entries, hits)


def by_address(address: str = "192.0.2.7/32", *, rate_limit_class: str = "default", hits: int = 1) -> Descriptor:
    """The descriptor that Envoy sends for every call."""
    return descriptor(("class", rate_limit_class), ("client_ip", address), hits=hits)


def by_user(user: str = "a-user", *, rate_limit_class: str = "default", hits: int = 1) -> Descriptor:
    """The descriptor that Envoy also sends for a signed-in call."""
    return descriptor(("class", rate_limit_class), ("user", user), hits=hits)


def described(*entries: str, hits: int | None = None) -> rls_pb2.RateLimitDescriptor:
    pairs = (entry.partition("=") for entry in entries)
    return rls_pb2.RateLimitDescriptor(
        entries=[rls_pb2.RateLimitDescriptor.Entry(key=key, value=value) for key, _, value in pairs],
        hits_addend=None if hits is None else wrappers_pb2.UInt64Value(value=hits),
    )


def asking(*descriptors: rls_pb2.RateLimitDescriptor, hits: int = 0) -> rls_pb2.RateLimitRequest:
    return rls_pb2.RateLimitRequest(domain=DOMAIN, descriptors=descriptors, hits_addend=hits)


BY_ADDRESS = described("class=default", "client_ip=192.0.2.7/32")
