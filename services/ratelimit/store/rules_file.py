"""Reads rules from YAML. A mistake is refused with its place in the file and the correction, never guessed at.

A file has a document for each domain; a folder has files. docs/rate-limits.md describes each key.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ..model import Limit
from ..model.matching import Address, DescriptorEntry
from ..model.quotas import Period, Quota
from ..model.rates import UNIT_MILLISECONDS, parse_rate, too_slow
from ..model.rules import Action, DomainRules, LeaseRule, OnNoMatch, OnRedisDown, Rule, RuleSet
from .yaml_reading import BadRules, Faults, Node, documents, optional, required

__all__ = ["BadRules", "load"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_DOMAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,127}")

_FILE_KEYS = ("domain", "on_no_match", "shadow", "rules")
_RULE_KEYS = (
    "name",
    "match",
    "rate",
    "burst",
    "quota",
    "time_zone",
    "concurrency",
    "ttl",
    "unlimited",
    "block",
    "cost",
    "on_redis_down",
    "local_share",
    "shadow",
    "always",
    "replaces",
)
_GROUP_KEYS = ("match", "rules")
_ENTRY_KEYS = ("key", "value", "exact", "cidr", "shared")
_KINDS = ("rate", "quota", "concurrency", "unlimited", "block")
_NOT_BESIDE = {
    "rate": ("time_zone", "ttl"),
    "quota": ("burst", "ttl"),
    "concurrency": ("burst", "time_zone", "cost", "local_share", "shadow", "always", "replaces"),
    "unlimited": ("burst", "time_zone", "ttl", "cost", "on_redis_down", "local_share"),
    "block": ("burst", "time_zone", "ttl", "cost", "on_redis_down", "local_share"),
}
_TTL = re.compile(r"(?P<count>[1-9]\d{0,8})(?P<unit>s|min|h|d)")
_LONGEST_TTL_SECONDS = 86_400
"""The holders of leases that died keep their places for so long."""
_QUOTA = re.compile(r"(?P<requests>[1-9]\d{0,11})/(?P<period>day|month)")
_DEEPEST = 32


class _Placed(NamedTuple):
    """A rule, and where its name stands."""

    rule: Rule
    at: Node
    replaces: list[Node]


def load(path: Path) -> RuleSet:
    """Read and check a file, or all files of a folder whose names end in .yaml or .yml. Raises BadRules."""
    faults = Faults()
    domains: list[DomainRules] = []
    first: dict[str, Node] = {}
    for file in _files(path):
        found = documents(file, faults)
        if not found:
            raise BadRules(f"{file}:1: must be a mapping of keys to values")
        for document in found:
            domain = _Document(document).read()
            if domain is None:
                continue
            if domain.domain in first:
                before = first[domain.domain]
                document.fault(f"the domain {domain.domain} has rules in {before.path}:{before.line} already")
            first.setdefault(domain.domain, document)
            domains.append(domain)
    faults.raise_if_any()
    return RuleSet(tuple(domains))


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(each for each in path.iterdir() if each.suffix in (".yaml", ".yml") and each.is_file())
    if not files:
        raise BadRules(f"{path} has no file whose name ends in .yaml")
    return files


class _Document:
    """One domain's rules."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._domain = ""
        self._rules: list[_Placed] = []

    def read(self) -> DomainRules | None:
        fields = self._node.fields((*_FILE_KEYS, "descriptors"), "a file of rules")
        if fields is None:
            return None
        if "descriptors" in fields:
            fields["descriptors"].fault(
                "is of envoyproxy/ratelimit; `python -m services.ratelimit import FILE` writes these as rules"
            )
            return None
        domain = required(fields, self._node, "domain", _named(_DOMAIN, "/"))
        on_no_match = required(fields, self._node, "on_no_match", lambda node: node.choice("allow", "deny"))
        shadow = optional(fields, "shadow", Node.truth, default=False)
        self._domain = domain or "?"
        if rules := required(fields, self._node, "rules", Node.items):
            for rule in rules:
                self._rule_or_group(rule, (), 1)
        self._check_names()
        rules_read = [placed.rule for placed in self._rules]
        return DomainRules(
            self._domain,
            OnNoMatch(on_no_match or OnNoMatch.DENY),
            tuple(each for each in rules_read if not isinstance(each, LeaseRule)),
            shadow,
            tuple(each for each in rules_read if isinstance(each, LeaseRule)),
        )

    def _rule_or_group(self, node: Node, outer: tuple[DescriptorEntry, ...], depth: int) -> None:
        """Read a rule, or a group, whose `match` comes before that of each rule in it."""
        fields = node.fields((*_RULE_KEYS, "rules"), "a rule")
        if fields is None:
            return
        match = outer + tuple(required(fields, node, "match", _match) or ())
        if "rules" not in fields:
            self._rule(node, fields, match)
            return
        for key in fields.keys() - set(_GROUP_KEYS):
            fields[key].fault("stands beside rules; a group has match and rules only, so write it in each of its rules")
        if depth == _DEEPEST:
            node.fault(f"groups stand more than {_DEEPEST} deep")
            return
        for inner in fields["rules"].items():
            self._rule_or_group(inner, match, depth + 1)

    def _rule(self, node: Node, fields: dict[str, Node], match: tuple[DescriptorEntry, ...]) -> None:
        name = required(fields, node, "name", _named(_NAME))
        kinds = [key for key in _KINDS if key in fields]
        if len(kinds) != 1:
            node.fault(f"must have one of {', '.join(_KINDS)}" + (f", not {' and '.join(kinds)}" if kinds else ""))
        action = Action.LIMIT
        for key, then in (("unlimited", Action.UNLIMITED), ("block", Action.BLOCK)):
            if key in fields:
                action = then
                if fields[key].truth() is False:
                    fields[key].fault("may only be true; leave the key out otherwise")
        limit: Limit | Quota | None = None
        on_redis_down, share = OnRedisDown.OPEN, 1.0
        if kinds == ["concurrency"]:
            self._lease_rule(node, fields, match, name)
            return
        if action is Action.LIMIT and kinds:
            limit = _quota(fields) if "quota" in fields else _limit(node, fields)
            answer = required(fields, node, "on_redis_down", lambda each: each.choice("open", "closed", "local"))
            on_redis_down = OnRedisDown(answer or OnRedisDown.OPEN)
            share = _local_share(node, fields, on_redis_down)
        _refuse_beside(kinds[0] if kinds else None, fields)
        replaces = fields["replaces"].items() if "replaces" in fields else []
        rule = Rule(
            name or "?",
            match,
            limit,
            on_redis_down,
            action,
            cost=optional(fields, "cost", lambda each: each.number(1, 1_000_000), default=1),
            shadow=optional(fields, "shadow", Node.truth, default=False),
            always=optional(fields, "always", Node.truth, default=False),
            replaces=frozenset(each for each in (item.text() for item in replaces) if each is not None),
            local_share=share,
            domain=self._domain,
            place=f"{node.path}:{node.line}",
        )
        if name is not None:
            self._rules.append(_Placed(rule, fields["name"], replaces))

    def _lease_rule(
        self, node: Node, fields: dict[str, Node], match: tuple[DescriptorEntry, ...], name: str | None
    ) -> None:
        most = required(fields, node, "concurrency", lambda each: each.number(1, 1_000_000))
        ttl = required(fields, node, "ttl", _ttl)
        answer = required(fields, node, "on_redis_down", lambda each: each.choice("open", "closed"))
        _refuse_beside("concurrency", fields)
        on_redis_down = OnRedisDown(answer or OnRedisDown.OPEN)
        rule = LeaseRule(
            name or "?",
            match,
            None,
            on_redis_down,
            domain=self._domain,
            place=f"{node.path}:{node.line}",
            most=most or 1,
            ttl_seconds=ttl or 1,
        )
        if name is not None:
            self._rules.append(_Placed(rule, fields["name"], []))

    def _check_names(self) -> None:
        first: dict[str, Node] = {}
        for rule, at, _ in self._rules:
            if rule.name in first:
                line = first[rule.name].line
                at.fault(f"{rule.name} is the name of the rule in line {line} too; they would share their buckets")
            first.setdefault(rule.name, at)
        by_name = {rule.name: rule for rule, _, _ in self._rules}
        for rule, _, replaces in self._rules:
            for node in replaces:
                name = node.text()
                if name == rule.name:
                    node.fault("a rule cannot replace itself")
                elif name is not None and (name not in first or isinstance(by_name[name], LeaseRule)):
                    node.fault(f"no rule of this domain has the name {name}")


def _refuse_beside(kind: str | None, fields: dict[str, Node]) -> None:
    """Fault the keys that say nothing in a rule of this kind."""
    for key in _NOT_BESIDE[kind] if kind else ():
        if key in fields:
            fields[key].fault(f"says nothing beside {kind}; remove it")


def _ttl(node: Node) -> int | None:
    """Seconds."""
    match = _TTL.fullmatch(node.scalar)
    if match is None:
        node.fault(f"{node.scalar!r} is not a time; write one such as 30s or 5min")
        return None
    seconds = int(match["count"]) * UNIT_MILLISECONDS[match["unit"]] // 1000
    if seconds > _LONGEST_TTL_SECONDS:
        node.fault(f"{node.scalar!r} is longer than a day, for which a holder that died would keep its place")
        return None
    return seconds


def _named(pattern: re.Pattern[str], also: str = "") -> Callable[[Node], str | None]:
    def read(node: Node) -> str | None:
        text = node.text()
        if text is not None and not pattern.fullmatch(text):
            signs = "".join(f"{sign} " for sign in f"_.-{also}").strip()
            node.fault(f"may have letters, digits and {signs} only, at most 128, and begins with a letter or digit")
            return None
        return text

    return read


def _match(node: Node) -> list[DescriptorEntry] | None:
    return [entry for entry in map(_entry, node.items()) if entry is not None]


def _entry(node: Node) -> DescriptorEntry | None:
    fields = node.fields(_ENTRY_KEYS, "an entry of match")
    if fields is None:
        return None
    key = required(fields, node, "key", Node.text)
    if key == "":
        fields["key"].fault("is empty; a descriptor's key never is")
    patterns = [name for name in ("value", "exact", "cidr") if name in fields]
    if len(patterns) > 1:
        node.fault(f"has {' and '.join(patterns)}; choose one")
        return None
    shared = optional(fields, "shared", Node.truth, default=False)
    if not patterns:
        return DescriptorEntry(key or "?", shared=shared)
    at = fields[patterns[0]]
    if at.is_null:
        at.fault("is empty; leave the key out to match any value")
        return None
    text = at.text()
    if text is None:
        return None
    entry = _pattern(patterns[0], key or "?", text, at, shared=shared)
    if entry is not None and shared and entry.value is not None:
        fields["shared"].fault("says nothing beside one exact value; remove it")
    return entry


def _pattern(kind: str, key: str, text: str, at: Node, *, shared: bool) -> DescriptorEntry | None:
    if kind == "cidr":
        address = Address.parse(text)
        if address is None:
            at.fault(f"{text!r} is not an address or network; write one such as 192.0.2.0/24 or 2001:db8::/32")
            return None
        network = ip_network(str(address))
        if "/" in text and (wider := str(network).partition("/")[0]) != _host(text):
            at.fault(f"{text!r} has bits beyond its length; write {wider}/{text.partition('/')[2]}")
            return None
        return DescriptorEntry(key, network=network, shared=shared)
    if kind == "value" and text.endswith("*"):
        prefix = text[:-1]
        return DescriptorEntry(key, prefix=prefix, shared=shared) if prefix else DescriptorEntry(key, shared=shared)
    if kind == "value" and "*" in text:
        at.fault(f"{text!r} has a * before its end, where none is a wildcard; write exact: if the value has it")
        return None
    return DescriptorEntry(key, value=text)


def _host(text: str) -> str:
    """The address of a network's text, in its one spelling."""
    address = Address.parse(text.partition("/")[0])
    return "" if address is None else str(address).partition("/")[0]


def _limit(node: Node, fields: dict[str, Node]) -> Limit | None:
    burst = required(fields, node, "burst", lambda each: each.number(1, 1_000_000_000))
    rate = _rate(fields["rate"]) if "rate" in fields else None
    if rate is None or burst is None:
        return None
    limit = Limit(*rate, burst)
    if fault := too_slow(limit):
        fields["burst"].fault(fault)
        return None
    return limit


def _quota(fields: dict[str, Node]) -> Quota | None:
    node = fields["quota"]
    match = _QUOTA.fullmatch(node.scalar)
    if match is None:
        node.fault(f"{node.scalar!r} is not a quota; write calls per calendar period, such as 1000/day or 20000/month")
    zone = fields["time_zone"].text() if "time_zone" in fields else "UTC"
    if zone is not None and not _is_zone(zone):
        fields["time_zone"].fault(f"there is no time zone {zone!r}; write one such as Europe/Berlin")
        zone = None
    return Quota(int(match["requests"]), Period(match["period"]), zone) if match and zone else None


def _is_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


def _rate(node: Node) -> tuple[int, int] | None:
    """Requests and seconds."""
    try:
        return parse_rate(node.scalar)
    except ValueError as fault:
        node.fault(str(fault))
        return None


def _local_share(node: Node, fields: dict[str, Node], on_redis_down: OnRedisDown) -> float:
    if on_redis_down is OnRedisDown.LOCAL:
        return required(fields, node, "local_share", Node.share) or 1.0
    if "local_share" in fields:
        fields["local_share"].fault("says nothing without on_redis_down: local; remove it")
    return 1.0
