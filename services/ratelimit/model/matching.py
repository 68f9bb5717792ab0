"""Patterns of descriptors, and the index that finds the most specific rules for one.

Each entry of a rule matches one entry of a descriptor: exactly, by network, by prefix, or any value. The index is a trie with a
level per entry, so that a search costs as many look-ups as there are kinds of pattern on its way, however many rules there are.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Generic, NamedTuple, TypeVar

Entries = tuple[tuple[str, str], ...]
"""A descriptor: keys and values in the order in which Envoy's actions produced them."""

Network = IPv4Network | IPv6Network

T = TypeVar("T")

_MAPPED = 0xFFFF << 32
"""The first 96 bits of an IPv4-mapped address (RFC 4291, 2.5.5.2)."""


@dataclass(frozen=True, slots=True)
class DescriptorEntry:
    """Matches one entry of a descriptor by its key and one of: its value, its prefix, its network, or else any value."""

    key: str
    value: str | None = None
    prefix: str | None = None
    network: Network | None = None
    shared: bool = False
    """One bucket for all values that match, instead of one for each."""

    def __str__(self) -> str:
        if self.value is not None:
            pattern = self.value
        elif self.prefix is not None:
            pattern = f"{self.prefix}*"
        else:
            pattern = str(self.network or "*")
        return f"{self.key}={pattern}{' (shared)' if self.shared else ''}"

    @property
    def specificity(self) -> tuple[int, int]:
        """Orders entries that match the same value: exact, then the longest network, then the longest prefix, then any."""
        if self.value is not None:
            return 3, 0
        if self.network is not None:
            return 2, self.network.prefixlen
        if self.prefix is not None:
            return 1, len(self.prefix)
        return 0, 0

    def matches(self, value: str) -> bool:
        if self.value is not None:
            return value == self.value
        if self.prefix is not None:
            return value.startswith(self.prefix)
        if self.network is not None:
            address = Address.parse(value)
            return address is not None and address.within(self.network)
        return True

    def covers(self, other: DescriptorEntry) -> bool:
        """Whether this entry matches every value that the other one matches."""
        if self.key != other.key or (self.value is not None and other.value is None):
            return False
        if other.value is not None:
            return self.matches(other.value)
        if self.prefix is not None:
            return other.prefix is not None and other.prefix.startswith(self.prefix)
        if self.network is not None:
            return other.network is not None and self.matches(str(other.network))
        return True


class Address(NamedTuple):
    """An address or a network as a number, with the number of its leading bits that count."""

    version: int
    number: int
    length: int

    @classmethod
    def parse(cls, text: str) -> Address | None:
        """Parse an address, or a network in CIDR form. None for other text. An IPv4-mapped address counts as IPv4."""
        host, slash, bits = text.partition("/")
        if ":" in host:
            family, version, width = socket.AF_INET6, 6, 128
        else:
            family, version, width = socket.AF_INET, 4, 32
        try:
            number = int.from_bytes(socket.inet_pton(family, host))
        except (OSError, ValueError):
            return None
        length = width
        if slash:
            if not (bits.isascii() and bits.isdigit() and len(bits) <= 3 and int(bits) <= width):
                return None
            length = int(bits)
        if version == 6 and number & ~0xFFFF_FFFF == _MAPPED and length >= 96:
            return cls(4, number & 0xFFFF_FFFF, length - 96)
        return cls(version, number, length)

    def within(self, network: Network) -> bool:
        width = network.max_prefixlen
        return (
            self.version == network.version
            and self.length >= network.prefixlen
            and self.number >> (width - network.prefixlen)
            == int(network.network_address) >> (width - network.prefixlen)
        )

    def __str__(self) -> str:
        """The network in CIDR form, its bits beyond the length left out: one text for all spellings of one network."""
        family, width = (socket.AF_INET6, 128) if self.version == 6 else (socket.AF_INET, 32)
        masked = self.number >> (width - self.length) << (width - self.length)
        return f"{socket.inet_ntop(family, masked.to_bytes(width // 8))}/{self.length}"


def canonical(value: str) -> str:
    """An address or network in one spelling; other text as it is."""
    address = Address.parse(value)
    return value if address is None else str(address)


@dataclass(slots=True)
class _Node(Generic[T]):
    """A level of the trie. `items` is what ends here."""

    exact: dict[str, _Node[T]] = field(default_factory=dict)
    networks: dict[tuple[int, int], dict[int, _Node[T]]] = field(default_factory=dict)
    """By version and length, the longest first; then by the network's leading bits."""
    prefixes: dict[int, dict[str, _Node[T]]] = field(default_factory=dict)
    """By length, the longest first; then by the prefix."""
    any: _Node[T] | None = None
    items: tuple[T, ...] = ()

    def child(self, entry: DescriptorEntry) -> _Node[T]:
        """The node of the entry, made if there is none yet."""
        if entry.value is not None:
            return self.exact.setdefault(entry.value, _Node())
        if entry.network is not None:
            network = entry.network
            leading = int(network.network_address) >> (network.max_prefixlen - network.prefixlen)
            same = self.networks.setdefault((network.version, network.prefixlen), {})
            self.networks = dict(sorted(self.networks.items(), reverse=True))
            return same.setdefault(leading, _Node())
        if entry.prefix is not None:
            alike = self.prefixes.setdefault(len(entry.prefix), {})
            self.prefixes = dict(sorted(self.prefixes.items(), reverse=True))
            return alike.setdefault(entry.prefix, _Node())
        if self.any is None:
            self.any = _Node()
        return self.any

    def patterned(self, value: str) -> Iterator[_Node[T]]:
        """The children that match the value by network, then those by prefix; the longest first."""
        if self.networks and (address := Address.parse(value)) is not None:
            version, number, bits = address
            width = 128 if version == 6 else 32
            for (of_version, length), same in self.networks.items():
                if of_version == version and length <= bits and (found := same.get(number >> (width - length))):
                    yield found
        for length, alike in self.prefixes.items():
            if found := alike.get(value[:length]):
                yield found


class Index(Generic[T]):
    """Finds items by the entries of a descriptor."""

    def __init__(self, items: Sequence[tuple[tuple[DescriptorEntry, ...], T]]) -> None:
        self._roots: dict[tuple[str, ...], _Node[T]] = {}
        for match, item in items:
            node = self._roots.setdefault(tuple(entry.key for entry in match), _Node())
            for entry in match:
                node = node.child(entry)
            node.items += (item,)

    def __bool__(self) -> bool:
        return bool(self._roots)

    def most_specific(self, entries: Entries) -> tuple[T, ...]:
        """The items of the most specific match; patterns are compared entry by entry, the first entry first."""
        root = self._roots.get(tuple([key for key, _ in entries]))
        return () if root is None else _most_specific(root, entries, 0)

    def all(self, entries: Entries) -> tuple[T, ...]:
        """The items of every match, the most specific first."""
        root = self._roots.get(tuple([key for key, _ in entries]))
        return () if root is None else tuple(_all(root, entries, 0))


def _most_specific(node: _Node[T], entries: Entries, depth: int) -> tuple[T, ...]:
    if depth == len(entries):
        return node.items
    value = entries[depth][1]
    child = node.exact.get(value)
    if child is not None and (found := _most_specific(child, entries, depth + 1)):
        return found
    if node.networks or node.prefixes:
        for child in node.patterned(value):
            if found := _most_specific(child, entries, depth + 1):
                return found
    return () if node.any is None else _most_specific(node.any, entries, depth + 1)


def _all(node: _Node[T], entries: Entries, depth: int) -> Iterator[T]:
    if depth == len(entries):
        yield from node.items
        return
    value = entries[depth][1]
    if (child := node.exact.get(value)) is not None:
        yield from _all(child, entries, depth + 1)
    for child in node.patterned(value):
        yield from _all(child, entries, depth + 1)
    if node.any is not None:
        yield from _all(node.any, entries, depth + 1)
