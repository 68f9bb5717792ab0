"""The rate limiter's operations: checks, and the rules in force."""

from __future__ import annotations

from dataclasses import dataclass

from kit.rpc.resources import Resources
from mesh import contract

from ..config import RateLimitSettings
from ..store.administration import RedisAdminStore
from ..store.buckets import RedisBucketStore
from ..store.leases import RedisLeaseStore
from ..store.reservations import RedisReservationStore
from ..store.withdrawals import RedisWithdrawals
from .assignments import Assignments
from .buckets import Buckets
from .classes import load_fitting
from .inspecting import Inspection
from .leases import Leases
from .listing import Listing
from .overrides import Overrides, RulesInForce
from .recording import Recordings
from .refusals import Offenders
from .reload import LiveRules
from .reservations import Reservations


@dataclass(frozen=True)
class Operations:
    """The operations that the servicers call, and the rules that they follow."""

    buckets: Buckets
    leases: Leases
    reservations: Reservations
    assignments: Assignments
    rules: LiveRules
    inspection: Inspection
    listing: Listing
    overrides: Overrides
    offenders: Offenders
    recordings: Recordings


def operations(settings: RateLimitSettings, resources: Resources) -> Operations:
    """Build the operations. Raises BadRules when the rules file cannot be used."""
    rules = LiveRules(settings.rate_limit_rules, load_fitting)
    in_force = RulesInForce(rules.current)
    store, seconds = RedisBucketStore(resources.blocking_redis()), settings.rate_limit_redis_seconds
    admin = RedisAdminStore(resources.redis, resources.clock)
    classes = contract.read().rate_limit_classes
    overrides = Overrides(admin, in_force, classes, resources.clock)
    # A connection of its own, because checks may be using the other one.
    apart = RedisBucketStore(resources.blocking_redis())
    buckets = Buckets(store, in_force.current, redis_seconds=seconds)
    offenders = Offenders(admin, buckets.refusals, resources.clock)
    return Operations(
        buckets,
        Leases(RedisLeaseStore(resources.redis), rules.current, redis_seconds=seconds),
        Reservations(RedisReservationStore(resources.redis), in_force.current, redis_seconds=seconds),
        Assignments(RedisWithdrawals(resources.blocking_redis()), in_force.current, redis_seconds=seconds),
        rules,
        Inspection(apart, admin, in_force.current, classes, resources.clock),
        Listing(rules.loaded, admin, overrides, offenders),
        overrides,
        offenders,
        Recordings(admin, buckets.recorder, rules.current, load_fitting, resources.clock),
    )
