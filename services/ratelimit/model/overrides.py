"""Grants and bans: rules for one caller that administrators make, and that end by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from math import inf
from uuid import UUID

from . import Limit
from .matching import DescriptorEntry
from .rules import Action, DomainRules, OnRedisDown, Rule, RuleSet


class OverrideKind(StrEnum):
    """What an override does with the calls that it matches."""

    GRANT = "grant"
    BAN = "ban"


@dataclass(frozen=True)
class Override:
    """A grant, which counts calls in a bucket of its own or in none; or a ban."""

    id: UUID
    kind: OverrideKind
    domain: str
    match: tuple[DescriptorEntry, ...]
    limit: Limit | None
    """None for a ban, and for a grant that lifts the limit."""

    made_at: int
    """In microseconds since 1970, as is the end."""

    ends_at: int
    actor_id: UUID
    reason: str

    @cached_property
    def rule(self) -> Rule:
        """The rule that it is. Its name holds the id and nothing of the caller, because names are in headers and logs."""
        granted = Action.UNLIMITED if self.limit is None else Action.LIMIT
        action = Action.BLOCK if self.kind is OverrideKind.BAN else granted
        return Rule(
            f"{self.kind}-{self.id}",
            self.match,
            self.limit,
            OnRedisDown.OPEN,
            action,
            always=True,
            domain=self.domain,
            made_at=self.made_at,
            ends_at=self.ends_at,
            group=self.kind,
        )


def merged(rules: RuleSet, overrides: Sequence[Override]) -> RuleSet:
    """The rules with the overrides of their domains; the same rules if there are none."""
    if not overrides:
        return rules
    return RuleSet(
        tuple(
            replace(each, rules=(*each.rules, *(one.rule for one in overrides if one.domain == each.domain)))
            for each in rules.domains
        )
    )


def in_force(matching: Sequence[tuple[Rule, ...]], at: int) -> tuple[list[tuple[Rule, ...]], float]:
    """Of the rules that match each descriptor, those that overrides leave at an instant, and until when that holds.

    What has ended is left out. The newest grant stands in place of the rules that count calls of its descriptor; those that block
    or only pass stay, and those in shadow mode, which ask nothing.
    """
    ends = min((rule.ends_at for rules in matching for rule in rules if rule.ends_at > at), default=inf)
    return [_left(tuple([rule for rule in rules if not 0 < rule.ends_at <= at])) for rules in matching], ends


def _left(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    grants = [rule for rule in rules if _is_grant(rule)]
    if not grants:
        return rules
    others = [rule for rule in rules if not _is_grant(rule)]
    if any(rule.action is Action.UNLIMITED for rule in others):
        # A grant only ever gives more.
        return tuple(others)
    newest = max(grants, key=lambda rule: rule.made_at)
    counting = [rule for rule in others if rule.action is Action.LIMIT and not rule.shadow]
    if any(rule.on_redis_down is OnRedisDown.CLOSED for rule in counting):
        newest = newest.closed
    return (*[rule for rule in others if rule not in counting], newest)


def _is_grant(rule: Rule) -> bool:
    return rule.group == OverrideKind.GRANT


def covers(domain: DomainRules, override: Override) -> bool:
    """Whether any rule of the domain is for descriptors of the override's form, so that it can have an effect."""
    return any(rule.keys == override.rule.keys for rule in domain.rules if not rule.group)
