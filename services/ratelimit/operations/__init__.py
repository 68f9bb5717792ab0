"""The rate limiter's operations: checks, and the rules in force."""

from __future__ import annotations

from dataclasses import dataclass

from kit.rpc.resources import Resources

from ..config import RateLimitSettings
from ..store.buckets import RedisBucketStore
from .buckets import Buckets
from .classes import load_fitting
from .reload import LiveRules


@dataclass(frozen=True)
class Operations:
    """The operation that the servicer calls, and the rules that it follows."""

    buckets: Buckets
    rules: LiveRules


def operations(settings: RateLimitSettings, resources: Resources) -> Operations:
    """Build the operations. Raises BadRules when the rules file cannot be used."""
    rules = LiveRules(settings.rate_limit_rules, load_fitting)
    store = RedisBucketStore(resources.blocking_redis())
    return Operations(Buckets(store, rules.current, redis_seconds=settings.rate_limit_redis_seconds), rules)
