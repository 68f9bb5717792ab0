"""Short constructors of rules, descriptors and requests."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from foreign import rls_pb2
from google.protobuf import wrappers_pb2

import services.ratelimit
from services.ratelimit.model import Limit
from services.ratelimit.model.decisions import Descriptor
from services.ratelimit.model.matching import Address, DescriptorEntry
from services.ratelimit.model.quotas import Quota
from services.ratelimit.model.rules import Action, DomainRules, OnNoMatch, OnRedisDown, Rule, RuleSet
from services.ratelimit.operations.buckets import Buckets

DOMAIN = "storymesh"
RULES_FOLDER = Path(next(iter(services.ratelimit.__path__))) / "rules"
PRODUCTION, LOCAL = RULES_FOLDER / "production.yaml", RULES_FOLDER / "local.yaml"

BucketsFor = Callable[[RuleSet], Buckets]


def rule(
    name: str = "a-rule",
    match: str = "class=default client_ip",
    *,
    limit: Limit | Quota | None = None,
    on_redis_down: OnRedisDown = OnRedisDown.OPEN,
    action: Action = Action.LIMIT,
    **more: Any,
) -> Rule:
    """A rule. `match` holds entries such as `class=default`, `user=a*`, `client_ip~192.0.2.0/24`, or `client_ip` for any value."""
    if action is Action.LIMIT:
        limit = limit or Limit(requests=60, period_seconds=60, burst=3)
    return Rule(name, tuple(map(entry, match.split())), limit, on_redis_down, action, **more)


def entry(text: str) -> DescriptorEntry:
    key, tilde, network = text.partition("~")
    if tilde:
        return DescriptorEntry(key, network=ip_network(str(Address.parse(network))))
    key, equals, value = text.partition("=")
    if value.endswith("*"):
        return DescriptorEntry(key, prefix=value[:-1])
    return DescriptorEntry(key, value if equals else None)


def rule_set(*rules: Rule, on_no_match: OnNoMatch = OnNoMatch.ALLOW, shadow: bool = False) -> RuleSet:
    return RuleSet((DomainRules(DOMAIN, on_no_match, rules, shadow),))


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
