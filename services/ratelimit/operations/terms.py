"""What the rules say of a bucket of Envoy's: which buckets of ours it draws on, and what holds while they cannot be reached."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from math import inf
from typing import NamedTuple

from ..model import Charge, Limit, Window
from ..model.overrides import in_force
from ..model.quotas import Quota
from ..model.rules import Action, DomainRules, Entries, OnNoMatch, OnRedisDown, Rule, RuleSet, replaced

BucketId = tuple[tuple[str, str], ...]
"""Keys and values, by key: an id of Envoy's has no order.

A key may hold entries whose values are fixed, before the key of its own value: `class=default client_ip`. Envoy writes out, copies
and hashes each entry of an id for each call, so that one costs it less than two.
"""


class Blanket(Enum):
    """One answer to all calls."""

    ADMIT = "admit"
    REFUSE = "refuse"


class Terms(NamedTuple):
    """What holds for one bucket id."""

    rules: RuleSet
    counting: tuple[Rule, ...]
    """The rules that count, in the order of the charges."""

    charges: tuple[Charge, ...]
    """One token of each bucket."""

    blanket: Blanket | None
    """The answer to all calls, if no rule counts."""

    without_redis: Blanket | Limit
    """The answer while the buckets cannot be reached; a limit is a part that this process may hand out by itself."""

    ends: float
    """When they have to be worked out again, in microseconds since 1970, because the period of a quota, a grant or a ban ends."""

    @property
    def burst(self) -> int:
        """The most calls that may pass at once."""
        return min(each.limit.capacity // each.debit for each in self.charges)


def terms_of(bucket: BucketId, domain_name: str, rules: RuleSet, at: int) -> Terms:
    """The terms at an instant, in microseconds since 1970.

    Rules in shadow mode are left out, because Envoy cannot be asked to count and admit. `replaces` works among the rules of one id.
    """
    domain = rules.of(domain_name)
    orders = list(_orders(bucket, domain))
    matching = [domain.matching(entries) for entries in orders]
    ends = inf
    if domain.overridden:
        matching, ends = in_force(matching, at)
    kept = replaced(matching)
    applying = [(entries, rule) for entries, found in zip(orders, kept, strict=True) for rule in found]
    asked = [(entries, rule) for entries, rule in applying if not (rule.shadow or domain.shadow)]
    denied = not any(matching) and domain.on_no_match is OnNoMatch.DENY and not domain.shadow
    if denied or any(rule.action is Action.BLOCK for _, rule in asked):
        return Terms(rules, (), (), Blanket.REFUSE, Blanket.REFUSE, ends)
    counting, charges = [], []
    for entries, rule in asked:
        if rule.limit is None:
            continue
        limit = rule.limit.window(at) if isinstance(rule.limit, Quota) else rule.limit
        if isinstance(limit, Window):
            ends = min(ends, limit.ends)
        counting.append(rule)
        charges.append(Charge(rule.bucket(entries), limit, rule.cost))
    if not charges:
        return Terms(rules, (), (), Blanket.ADMIT, Blanket.ADMIT, ends)
    return Terms(rules, tuple(counting), tuple(charges), None, _without_redis(counting), ends)


def _orders(bucket: BucketId, domain: DomainRules) -> Iterator[Entries]:
    """The id's entries in each order in which rules have its keys."""
    values = dict(_written_out(bucket))
    for keys in dict.fromkeys(rule.keys for rule in domain.rules):
        if len(keys) == len(values) and set(keys) == values.keys():
            yield tuple([(key, values[key]) for key in keys])


def _written_out(bucket: BucketId) -> Iterator[tuple[str, str]]:
    for key, value in bucket:
        *fixed, last = key.split(" ")
        if all("=" in each for each in fixed):
            for each in fixed:
                name, _, text = each.partition("=")
                yield name, text
            yield last, value
        else:
            yield key, value


def _without_redis(rules: list[Rule]) -> Blanket | Limit:
    """As each rule's `on_redis_down` says; the strictest of several applies."""
    if any(rule.on_redis_down is OnRedisDown.CLOSED for rule in rules):
        return Blanket.REFUSE
    local = [
        rule.limit.share(rule.local_share)
        for rule in rules
        if rule.on_redis_down is OnRedisDown.LOCAL and isinstance(rule.limit, Limit)
    ]
    return min(local, key=lambda limit: limit.requests / limit.period_seconds, default=Blanket.ADMIT)
