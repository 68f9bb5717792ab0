"""Rules: the limits that apply to a call."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from urllib.parse import quote

from . import Limit

Entries = tuple[tuple[str, str], ...]
"""A descriptor: keys and values in the order in which Envoy's actions produced them."""


class OnRedisDown(StrEnum):
    """A rule's answer while its buckets cannot be reached: OPEN admits, CLOSED fails."""

    OPEN = "open"
    CLOSED = "closed"


class OnNoMatch(StrEnum):
    """The answer to a descriptor that no rule matches."""

    ALLOW = "allow"
    DENY = "deny"


@dataclass(frozen=True, slots=True)
class DescriptorEntry:
    """Matches one entry of a descriptor: its key, and its value unless that is None."""

    key: str
    value: str | None = None

    def __str__(self) -> str:
        return f"{self.key}={'*' if self.value is None else self.value}"


@dataclass(frozen=True, slots=True)
class Rule:
    """A limit for descriptors with exactly these entries, with one bucket per combination of values."""

    name: str
    match: tuple[DescriptorEntry, ...]
    limit: Limit
    on_redis_down: OnRedisDown

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(entry.key for entry in self.match)

    def matches(self, entries: Entries) -> bool:
        """Whether the rule matches. Order counts, because the protocol's descriptors are ordered."""
        return len(entries) == len(self.match) and all(
            key == entry.key and entry.value in (None, value)
            for (key, value), entry in zip(entries, self.match, strict=True)
        )


@dataclass(frozen=True)
class RuleSet:
    """All rules in force. Every rule that matches a descriptor applies, so that one can bound bursts and another days."""

    domain: str
    on_no_match: OnNoMatch
    rules: tuple[Rule, ...]

    def matching(self, domain: str, entries: Entries) -> tuple[Rule, ...]:
        """The rules that match, in the order of the file; none in a foreign domain."""
        if domain != self.domain:
            return ()
        candidates = self._by_keys.get(tuple(key for key, _ in entries), ())
        return tuple(rule for rule in candidates if rule.matches(entries))

    def bucket(self, rule: Rule, entries: Entries) -> str:
        """The Redis key of the bucket that `rule` keeps for these entries.

        Each part is percent-encoded, so that no value can imitate the separators and reach another's bucket. The hash tag puts all
        buckets of a domain into one slot of Redis Cluster: a call's buckets are debited together or not at all, and addresses and
        users occur in every combination, so no narrower tag would hold them.
        """
        parts = (f"{quote(key, safe='')}={quote(value, safe='')}" for key, value in entries)
        return ":".join((f"ratelimit:{{{self.domain}}}", rule.name, *parts))

    @cached_property
    def _by_keys(self) -> dict[tuple[str, ...], list[Rule]]:
        by_keys: dict[tuple[str, ...], list[Rule]] = defaultdict(list)
        for rule in self.rules:
            by_keys[rule.keys].append(rule)
        return dict(by_keys)
