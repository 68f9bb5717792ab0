"""Checks rules against the edge and its contract: every rate-limit class has rules, and what rules match exists."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mesh import contract
from mesh.contract import Access, Contract
from mesh.edge_protocol import RATE_LIMIT_DOMAIN

from ..model.matching import Address, DescriptorEntry
from ..model.rules import DomainRules, OnNoMatch, RuleSet
from ..store.rules_file import BadRules, load

EDGE_DOMAIN = RATE_LIMIT_DOMAIN
"""The domain of the edge's calls (`rate_limit.domain` in envoy/edge.yaml). Rules of other domains are for other callers."""

IPV6_LENGTH = 64
"""The edge counts an IPv6 client by its /64."""

CLASS, CLIENT_ADDRESS, USER = "class", "client_ip", "user"
"""Keys of the edge's descriptors: (class, client_ip) for every call, and also (class, user) for a signed-in one."""


def load_fitting(path: Path) -> RuleSet:
    """Load a rules file that fits the contract. Raises BadRules."""
    rules = load(path)
    if faults := "\n".join(f"{path}: {fault}" for fault in misfits(rules, contract.read())):
        raise BadRules(faults)
    return rules


def misfits(rules: RuleSet, known: Contract) -> Iterator[str]:
    """Describe each class that only the rules have, each that they leave without a limit, and addresses that no call has."""
    of_edge = rules.of(EDGE_DOMAIN)
    classes = known.rate_limit_classes
    for rule in of_edge.rules:
        for entry in rule.match:
            if entry.key == CLASS and not any(map(entry.matches, classes)):
                named = str(entry).partition("=")[2]
                yield f"{rule.name}: the contract has no rate-limit class {named}; it has {', '.join(classes)}"
            if entry.key == CLIENT_ADDRESS and (fault := _never_sent(entry)):
                yield f"{rule.name}: {fault}"
    otherwise = "is refused" if of_edge.on_no_match is OnNoMatch.DENY else "goes unlimited"
    for rate_limit_class in classes:
        for key in _keys_beside(rate_limit_class, known):
            if not _limits(of_edge, rate_limit_class, key):
                yield (
                    f"no rule matches every call of the rate-limit class {rate_limit_class} by {key}, which then {otherwise}; "
                    f"write one that matches {{key: {CLASS}, value: {rate_limit_class}}} and {{key: {key}}}"
                )


def _never_sent(entry: DescriptorEntry) -> str:
    """Why no client's address matches, if none does."""
    address = Address.parse(entry.value) if entry.value is not None else None
    if address is not None and entry.value != str(address):
        return f"clients are counted by networks, so the value {entry.value} matches none; write cidr: {entry.value}"
    network = entry.network
    if network is not None and network.version == 6 and network.prefixlen > IPV6_LENGTH:
        return f"IPv6 clients are counted by their /{IPV6_LENGTH}, so {network} matches none; write a network of that length"
    return ""


def _keys_beside(rate_limit_class: str, known: Contract) -> tuple[str, ...]:
    signed_in = any(
        method.rate_limit_class == rate_limit_class and method.access is not Access.PUBLIC for method in known.exposed
    )
    return (CLIENT_ADDRESS, USER) if signed_in else (CLIENT_ADDRESS,)


def _limits(rules: DomainRules, rate_limit_class: str, key: str) -> bool:
    """Whether a rule matches every value of the key in this class."""
    return any(
        rule.keys == (CLASS, key)
        and rule.match[0].matches(rate_limit_class)
        and rule.match[1].covers(DescriptorEntry(key))
        for rule in rules.rules
    )
