"""Checks rules against the contract: every rate-limit class has rules, and every class with rules exists."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mesh import contract
from mesh.contract import Access, Contract

from ..model.rules import OnNoMatch, RuleSet
from ..store.rules_file import BadRules, load

CLASS, CLIENT_ADDRESS, USER = "class", "client_ip", "user"
"""Keys of the edge's descriptors: (class, client_ip) for every call, and also (class, user) for a signed-in one."""


def load_fitting(path: Path) -> RuleSet:
    """Load a rules file that fits the contract. Raises BadRules."""
    rules = load(path)
    if faults := "\n".join(f"{path}: {fault}" for fault in misfits(rules, contract.read())):
        raise BadRules(faults)
    return rules


def misfits(rules: RuleSet, known: Contract) -> Iterator[str]:
    """Describe each class that only the rules have, and each that they leave without a limit."""
    classes = known.rate_limit_classes
    for rule in rules.rules:
        for entry in rule.match:
            if entry.key == CLASS and entry.value not in (None, *classes):
                yield f"{rule.name}: the contract has no rate-limit class {entry.value}; it has {', '.join(classes)}"
    otherwise = "is refused" if rules.on_no_match is OnNoMatch.DENY else "goes unlimited"
    for rate_limit_class in classes:
        for key in _keys_beside(rate_limit_class, known):
            if not _limits(rules, rate_limit_class, key):
                yield (
                    f"no rule matches every call of the rate-limit class {rate_limit_class} by {key}, which then {otherwise}; "
                    f"write one that matches {{key: {CLASS}, value: {rate_limit_class}}} and {{key: {key}}}"
                )


def _keys_beside(rate_limit_class: str, known: Contract) -> tuple[str, ...]:
    signed_in = any(
        method.rate_limit_class == rate_limit_class and method.access is not Access.PUBLIC for method in known.exposed
    )
    return (CLIENT_ADDRESS, USER) if signed_in else (CLIENT_ADDRESS,)


def _limits(rules: RuleSet, rate_limit_class: str, key: str) -> bool:
    """Whether a rule matches every value of the key in this class."""
    return any(
        rule.keys == (CLASS, key) and rule.match[0].value in (None, rate_limit_class) and rule.match[1].value is None
        for rule in rules.rules
    )
