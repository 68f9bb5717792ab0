"""Rules: what limits a call.

Of the rules that match a descriptor, those with the most specific match apply; a rule that is `always` on applies beside them.
So a general rule has exceptions, and two rules with one match both apply, of which one can bound bursts and the other days.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from hashlib import sha256

from . import Limit
from .matching import DescriptorEntry, Entries, Index, canonical
from .quotas import Quota

__all__ = [
    "Action",
    "DescriptorEntry",
    "DomainRules",
    "Entries",
    "LeaseRule",
    "OnNoMatch",
    "OnRedisDown",
    "Rule",
    "RuleSet",
]

_LONGEST_VALUE = 128
"""Characters of a value in a bucket's key. A longer one is hashed, so that nobody fills Redis with one call's descriptors."""

_ESCAPES = str.maketrans({"%": "%25", ":": "%3A", "=": "%3D"})


class OnRedisDown(StrEnum):
    """A rule's answer while its buckets cannot be reached: OPEN admits, CLOSED fails, LOCAL asks buckets in the process."""

    OPEN = "open"
    CLOSED = "closed"
    LOCAL = "local"


class OnNoMatch(StrEnum):
    """The answer to a descriptor that no rule matches."""

    ALLOW = "allow"
    DENY = "deny"


class Action(StrEnum):
    """What a rule does with a call: LIMIT counts it, UNLIMITED passes it, BLOCK refuses it."""

    LIMIT = "limit"
    UNLIMITED = "unlimited"
    BLOCK = "block"


@dataclass(frozen=True)
class Rule:
    """A limit for descriptors with exactly these entries, with one bucket per combination of values."""

    name: str
    match: tuple[DescriptorEntry, ...]
    limit: Limit | Quota | None
    """None for a rule that does not count."""

    on_redis_down: OnRedisDown
    action: Action = Action.LIMIT
    cost: int = 1
    """Tokens per hit."""

    shadow: bool = False
    """Counts and tells, but never refuses."""

    always: bool = False
    """Applies even where a more specific rule matches."""

    replaces: frozenset[str] = frozenset()
    """Names of rules that do not apply to a call to which this one applies."""

    local_share: float = 1.0
    """The part of the limit that one process admits by itself while Redis is down, if `on_redis_down` is LOCAL."""

    domain: str = "storymesh"

    place: str = field(default="", compare=False)
    """The file and line where it stands."""

    group: str = ""
    """Of a rule that an administrator made for a time, its kind, under which metrics count all such rules together."""

    made_at: int = 0
    ends_at: int = 0
    """When such a rule was made and when it ends, in microseconds since 1970."""

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(entry.key for entry in self.match)

    def matches(self, entries: Entries) -> bool:
        """Whether the rule matches. Order counts, because the protocol's descriptors are ordered."""
        return len(entries) == len(self.match) and all(
            key == entry.key and entry.matches(value) for (key, value), entry in zip(entries, self.match, strict=True)
        )

    def bucket(self, entries: Entries) -> str:
        """The Redis key of the bucket for these entries, which the rule matches.

        Each value is escaped, so that none can imitate the separators and reach another's bucket. The hash tag puts all buckets of
        a domain into one slot of Redis Cluster: a call's buckets are debited together or not at all, and addresses and users occur
        in every combination, so no narrower tag would hold them.
        """
        key = self._head
        for (part, shared, is_network), (_, value) in zip(self._parts, entries, strict=True):
            if shared is not None:
                key += shared
                continue
            text = canonical(value) if is_network else value
            key += part + (text.translate(_ESCAPES) if len(text) <= _LONGEST_VALUE else _hashed(text))
        return key

    @cached_property
    def asks(self) -> bool:
        """Whether a client has to heed the rule: one in shadow mode and one that only passes ask nothing of it."""
        return not self.shadow and self.action is not Action.UNLIMITED

    @cached_property
    def full_name(self) -> tuple[str, str]:
        """The names of domain and rule."""
        return self.domain, self.name

    @cached_property
    def counted_as(self) -> tuple[str, str]:
        """The names of domain and rule in metrics, of which there are no more than the rules of files and some."""
        return self.domain, self.group or self.name

    @cached_property
    def closed(self) -> Rule:
        """The same rule, but letting nothing pass while Redis is down."""
        return replace(self, on_redis_down=OnRedisDown.CLOSED)

    @cached_property
    def _head(self) -> str:
        # A quota's state has another form, and an entry's part always has an equals sign.
        of_quota = f":{self.limit.period}" if isinstance(self.limit, Quota) else ""
        return f"ratelimit:{{{self.domain}}}:{self.name}{of_quota}"

    @cached_property
    def _parts(self) -> tuple[tuple[str, str | None, bool], ...]:
        """Each entry's part of a key up to its value, the whole part if its values share a bucket, and whether it is a network."""
        return tuple(
            (
                f":{entry.key.translate(_ESCAPES)}=",
                # No value's own key can end like this, because its percent signs are escaped.
                f":{entry.key.translate(_ESCAPES)}=%*" if entry.shared else None,
                entry.network is not None,
            )
            for entry in self.match
        )


@dataclass(frozen=True)
class LeaseRule(Rule):
    """A bound on leases: `most` at a time for each combination of values. Checks of calls know nothing of it."""

    most: int = 1
    ttl_seconds: int = 1
    """How long a lease lasts that is not renewed."""

    @cached_property
    def _head(self) -> str:
        # The holders of leases have another form than a bucket, and an entry's part always has an equals sign.
        return f"ratelimit:{{{self.domain}}}:{self.name}:leases"


def _hashed(value: str) -> str:
    return f"%#{sha256(value.encode('utf-8', 'surrogatepass')).hexdigest()}"


@dataclass(frozen=True)
class DomainRules:
    """The rules of one domain."""

    domain: str
    on_no_match: OnNoMatch
    rules: tuple[Rule, ...]
    shadow: bool = False
    """No rule of the domain refuses; each counts and tells."""

    leases: tuple[LeaseRule, ...] = ()

    def matching_leases(self, entries: Entries) -> tuple[LeaseRule, ...]:
        """The rules that bound a lease, in the order of the file."""
        return tuple([self.leases[place] for place in self._lease_index.most_specific(entries)])

    def matching(self, entries: Entries) -> tuple[Rule, ...]:
        """The rules that apply, in the order of the file."""
        places = self._index.most_specific(entries)
        if self._always and (beside := self._always.all(entries)):
            places = tuple(sorted({*places, *beside}))
        return tuple([self.rules[place] for place in places])

    @cached_property
    def _index(self) -> Index[int]:
        return Index([(rule.match, place) for place, rule in enumerate(self.rules) if not rule.always])

    @cached_property
    def _lease_index(self) -> Index[int]:
        return Index([(rule.match, place) for place, rule in enumerate(self.leases)])

    @cached_property
    def _always(self) -> Index[int]:
        return Index([(rule.match, place) for place, rule in enumerate(self.rules) if rule.always])

    @cached_property
    def overridden(self) -> bool:
        """Whether an administrator made any of the rules for a time."""
        return any(rule.ends_at for rule in self.rules)

    @cached_property
    def replacing(self) -> bool:
        """Whether any rule replaces others."""
        return any(rule.replaces for rule in self.rules)


@dataclass(frozen=True)
class RuleSet:
    """All rules in force, by domain."""

    domains: tuple[DomainRules, ...]

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Those that calls are checked by."""
        return tuple(rule for each in self.domains for rule in each.rules)

    @property
    def leases(self) -> tuple[LeaseRule, ...]:
        """Those that bound leases."""
        return tuple(rule for each in self.domains for rule in each.leases)

    def of(self, domain: str) -> DomainRules:
        """The rules of the domain. One without any denies its calls if any other domain denies where nothing matches."""
        return self._by_domain.get(domain) or self._elsewhere

    def matching(self, domain: str, entries: Entries) -> tuple[Rule, ...]:
        """The rules that apply to a descriptor, in the order of the file; none in a domain without rules."""
        return self.of(domain).matching(entries)

    def bucket(self, rule: Rule, entries: Entries) -> str:
        """The Redis key of the bucket that `rule` keeps for these entries."""
        return rule.bucket(entries)

    @cached_property
    def _by_domain(self) -> dict[str, DomainRules]:
        return {each.domain: each for each in self.domains}

    @cached_property
    def _elsewhere(self) -> DomainRules:
        denied = any(each.on_no_match is OnNoMatch.DENY for each in self.domains)
        return DomainRules("", OnNoMatch.DENY if denied else OnNoMatch.ALLOW, ())


def replaced(applying: Sequence[tuple[Rule, ...]]) -> list[tuple[Rule, ...]]:
    """Leave out the rules that another one of the same call replaces."""
    names = frozenset[str]().union(*(rule.replaces for rules in applying for rule in rules))
    return [tuple(rule for rule in rules if rule.name not in names) for rules in applying]
