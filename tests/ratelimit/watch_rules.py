"""A limiter that bounds watches at three a person."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kit.data import redis as kit_redis
from local.harness import Servers
from services.ratelimit.model.matching import DescriptorEntry
from services.ratelimit.model.rules import DomainRules, LeaseRule, OnNoMatch, OnRedisDown, RuleSet
from tests.ratelimit.limiter import limiter

MOST = 3
MATCH = (DescriptorEntry("watch"), DescriptorEntry("user"))
BOUND = LeaseRule("open-watches", MATCH, None, OnRedisDown.OPEN, most=MOST, ttl_seconds=3600)
RULES = RuleSet((DomainRules("storymesh", OnNoMatch.DENY, (), leases=(BOUND,)),))


@asynccontextmanager
async def bounding_watches(servers: Servers) -> AsyncIterator[str]:
    """Serve these rules, and yield the address."""
    async with (
        kit_redis.connect(servers.service_redis_url("ratelimit")) as redis,
        limiter(redis, lambda: RULES) as address,
    ):
        yield address
