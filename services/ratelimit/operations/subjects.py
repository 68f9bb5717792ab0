"""Subjects of administrators' questions: an address or a user becomes the descriptors that the edge sends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_network

from kit.errors import InvalidArgument, Violation

from ..model.decisions import Descriptor
from ..model.matching import Address, DescriptorEntry, Entries, Network
from .classes import CLASS, CLIENT_ADDRESS, EDGE_DOMAIN, IPV6_LENGTH, USER
from .planning import Check

_WIDEST = {4: 16, 6: 32}
"""By version, the shortest network that a grant or a ban may name: one slip must not mean everybody."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose calls are meant. Descriptors stand in place of the other fields; the domain only beside them."""

    client_address: str = ""
    user_id: str = ""
    rate_limit_class: str = ""
    """Empty: every class."""

    descriptors: tuple[Entries, ...] = ()
    domain: str = ""

    def __str__(self) -> str:
        """The subject in one line, for the record of changes."""
        if self.descriptors:
            told = "; ".join(" ".join(f"{key}={value}" for key, value in entries) for entries in self.descriptors)
            return f"{self.domain or EDGE_DOMAIN}: {told}"
        pairs = (CLASS, self.rate_limit_class), (CLIENT_ADDRESS, self.client_address), (USER, self.user_id)
        return " ".join(f"{key}={value}" for key, value in pairs if value)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a subject, and its class; empty for one that is told by its descriptors."""

    rate_limit_class: str
    check: Check


def calls_of(subject: Subject, classes: Sequence[str]) -> list[Call]:
    """The subject's call in each class, or the one that it describes. Raises InvalidArgument."""
    if violations := list(_violations(subject, classes)):
        raise InvalidArgument(violations)
    if subject.descriptors:
        return [Call("", Check(subject.domain or EDGE_DOMAIN, tuple(map(Descriptor, subject.descriptors))))]
    beside: list[tuple[str, str]] = []
    if subject.client_address:
        beside.append((CLIENT_ADDRESS, counted_address(subject.client_address)))
    if subject.user_id:
        beside.append((USER, subject.user_id.lower()))
    return [
        Call(each, Check(EDGE_DOMAIN, tuple(Descriptor(((CLASS, each), pair)) for pair in beside)))
        for each in ([subject.rate_limit_class] if subject.rate_limit_class else classes)
    ]


def match_of(subject: Subject, classes: Sequence[str]) -> tuple[str, tuple[DescriptorEntry, ...]]:
    """The domain, and what a rule for one caller matches: the calls of the address, the network or the user.

    Raises InvalidArgument, also for a subject of several descriptors, and for a network of more than a /16 or, of IPv6, a /32.
    """
    if subject.descriptors:
        if violations := list(_violations(subject, classes)):
            raise InvalidArgument(violations)
        if len(subject.descriptors) > 1:
            raise InvalidArgument([Violation("subject.descriptors", "are several; name one", "TOO_MANY")])
        (entries,) = subject.descriptors
        if not any(value for _, value in entries):
            raise InvalidArgument(
                [Violation("subject.descriptors[0]", "has no value, and so means everybody", "REQUIRED")]
            )
        return subject.domain or EDGE_DOMAIN, tuple(DescriptorEntry(key, value or None) for key, value in entries)
    if subject.client_address and subject.user_id:
        raise InvalidArgument([Violation("subject.user_id", "stands beside client_address; name one", "EXCLUSIVE")])
    network = _network(subject.client_address)
    one = replace(subject, client_address=str(network).partition("/")[0]) if network else subject
    if violations := list(_violations(one, classes)):
        raise InvalidArgument(violations)
    whom = (
        DescriptorEntry(CLIENT_ADDRESS, network=network) if network else DescriptorEntry(USER, subject.user_id.lower())
    )
    return EDGE_DOMAIN, (DescriptorEntry(CLASS, subject.rate_limit_class or None), whom)


def _network(text: str) -> Network | None:
    """The network that an address or a network means; that of an IPv6 address is its /64. None for any other text."""
    address = Address.parse(text)
    if address is None or address.length < _WIDEST[address.version]:
        return None
    length = min(address.length, 32 if address.version == 4 else IPV6_LENGTH)
    return ip_network(str(address._replace(length=length)))


def counted_address(text: str) -> str:
    """The network by which the edge counts a client: an IPv4 address, or the /64 of an IPv6 one. Empty for any other text."""
    address = Address.parse(text)
    if address is None:
        return ""
    length = 32 if address.version == 4 else IPV6_LENGTH
    return str(address._replace(length=length)) if address.length >= length else ""


def _violations(subject: Subject, classes: Sequence[str]) -> Iterator[Violation]:
    by_field = subject.client_address or subject.user_id or subject.rate_limit_class
    if subject.descriptors:
        if by_field:
            yield Violation(
                "subject.descriptors", "stand beside other fields that say whose calls are meant", "EXCLUSIVE"
            )
        return
    if not (subject.client_address or subject.user_id):
        yield Violation("subject", "names neither an address, nor a user, nor descriptors", "REQUIRED")
    if subject.domain:
        yield Violation("subject.domain", "says nothing without descriptors", "EXCLUSIVE")
    if subject.client_address and not counted_address(subject.client_address):
        yield Violation("subject.client_address", "is not one client's address, such as 192.0.2.7", "ADDRESS_INVALID")
    if subject.rate_limit_class and subject.rate_limit_class not in classes:
        yield Violation("subject.rate_limit_class", f"is none of {', '.join(classes)}", "STRING_IN")
