"""Reads YAML by its nodes, so that each mistake is told with its line, and all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import yaml

T = TypeVar("T")

_MOST_NODES = 200_000
"""Aliases of aliases can make a short text as large as one likes."""


class BadRules(Exception):
    """The rules cannot be used. The message has a line for each mistake."""


class Faults:
    """The mistakes found so far."""

    def __init__(self) -> None:
        self._lines: list[tuple[str, int, str]] = []

    def add(self, at: Node, sentence: str) -> None:
        where = f"{at.place}: " if at.place else ""
        self._lines.append((str(at.path), at.line, f"{at.path}:{at.line}: {where}{sentence}"))

    def raise_if_any(self) -> None:
        if self._lines:
            raise BadRules("\n".join(dict.fromkeys(text for _, _, text in sorted(self._lines))))


class Node:
    """A part of a file, with its place in it."""

    def __init__(self, node: yaml.Node, path: Path, place: str, faults: Faults, key: yaml.Node | None = None) -> None:
        """`key` is what the node is the value of: a value may begin a line later, where nobody would look for it."""
        self._node = node
        self._begin = key or node
        self.path = path
        self.place = place
        self.faults = faults

    @property
    def line(self) -> int:
        return int(self._begin.start_mark.line) + 1

    def fault(self, sentence: str) -> None:
        self.faults.add(self, sentence)

    @property
    def is_null(self) -> bool:
        return self._tag == "null"

    @property
    def scalar(self) -> str:
        """The text as it is written, a number's too; empty for a list or a mapping."""
        return str(self._node.value) if isinstance(self._node, yaml.ScalarNode) else ""

    def text(self) -> str | None:
        """The text; None and a fault if it is none, as are numbers, dates and words such as `on` that YAML takes for a truth."""
        if isinstance(self._node, yaml.ScalarNode) and self._tag == "str":
            return str(self._node.value)
        self.fault("must be text; put it in quotes")
        return None

    def number(self, least: int, most: int) -> int | None:
        if isinstance(self._node, yaml.ScalarNode) and self._tag == "int":
            digits = self._node.value.replace("_", "")
            if digits.lstrip("+-").isdecimal() and len(digits) < 20 and least <= int(digits) <= most:
                return int(digits)
        self.fault(f"must be a whole number from {least} to {most}")
        return None

    def share(self) -> float | None:
        """A number above 0 and up to 1."""
        if isinstance(self._node, yaml.ScalarNode) and self._tag in ("int", "float"):
            try:
                value = float(self._node.value)
            except ValueError:
                value = 0
            if 0.001 <= value <= 1:
                return value
        self.fault("must be a part such as 0.25, from 0.001 to 1")
        return None

    def truth(self) -> bool | None:
        if isinstance(self._node, yaml.ScalarNode) and self._tag == "bool":
            return bool(yaml.SafeLoader.bool_values[self._node.value.lower()])
        self.fault("must be true or false")
        return None

    def choice(self, *words: str) -> str | None:
        if isinstance(self._node, yaml.ScalarNode) and self._node.value in words:
            return str(self._node.value)
        self.fault(f"must be {', '.join(words[:-1])} or {words[-1]}")
        return None

    def items(self) -> list[Node]:
        """The items of a list. Empty and a fault if it is none, or has none."""
        if not isinstance(self._node, yaml.SequenceNode):
            self.fault("must be a list, each item after a hyphen")
            return []
        if not self._node.value:
            self.fault("must have at least one item")
        return [
            Node(item, self.path, f"{self.place}[{number}]", self.faults)
            for number, item in enumerate(self._node.value)
        ]

    def fields(self, known: tuple[str, ...], what: str) -> dict[str, Node] | None:
        """The values of a mapping by key. None and a fault if it is none; unknown keys and keys written twice are faults."""
        if not isinstance(self._node, yaml.MappingNode):
            self.fault("must be a mapping of keys to values")
            return None
        found: dict[str, Node] = {}
        for key_node, value_node in self._pairs():
            key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else ""
            place = f"{self.place}.{key}" if self.place else key
            at = Node(key_node, self.path, place, self.faults)
            if key not in known:
                at.fault(f"is not a key that {what} has; it has {', '.join(known)}")
            elif key in found:
                at.fault(f"is written twice, first in line {found[key].line}")
            else:
                found[key] = Node(value_node, self.path, place, self.faults, key_node)
        return found

    def _pairs(self) -> Iterator[tuple[yaml.Node, yaml.Node]]:
        """Keys and values; those that `<<` brings from elsewhere come only where the mapping itself lacks the key."""
        own = [pair for pair in self._node.value if pair[0].tag != "tag:yaml.org,2002:merge"]
        yield from own
        names = {key.value for key, _ in own if isinstance(key, yaml.ScalarNode)}
        for key, value in self._node.value:
            if key.tag == "tag:yaml.org,2002:merge" and isinstance(value, yaml.MappingNode):
                yield from (pair for pair in value.value if pair[0].value not in names)

    @property
    def _tag(self) -> str:
        return str(self._node.tag).rpartition(":")[2]


def required(fields: dict[str, Node], at: Node, key: str, read: Callable[[Node], T | None]) -> T | None:
    """The value of a key that must be there."""
    if key not in fields:
        at.fault(f"has no {key}; write it, it has no default")
        return None
    return read(fields[key])


def optional(fields: dict[str, Node], key: str, read: Callable[[Node], T | None], default: T) -> T:
    """The value of a key, or the default if the key is not there or its value is at fault."""
    if key not in fields:
        return default
    value = read(fields[key])
    return default if value is None else value


def documents(path: Path, faults: Faults) -> list[Node]:
    """The documents of a file. Raises BadRules if the file cannot be read or is not YAML."""
    try:
        loader = yaml.SafeLoader(path.read_bytes())
        try:
            nodes: list[yaml.Node] = []
            while loader.check_node():
                if (node := loader.get_node()) is not None:
                    nodes.append(node)
        finally:
            loader.dispose()
        _bounded(nodes)
    except OSError as error:
        raise BadRules(f"{path} cannot be read: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        said = " ".join(f"{error.context or ''} {error.problem or ''}".split())
        raise BadRules(f"{path}{line}: is not YAML: {said}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadRules(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    return [Node(node, path, "", faults) for node in nodes]


def _bounded(nodes: list[yaml.Node]) -> None:
    """Raises ValueError when following every alias leads to too many nodes, or leads in a circle."""
    left = _MOST_NODES
    stack = list(nodes)
    while stack:
        node = stack.pop()
        left -= 1
        if left < 0:
            raise ValueError(f"more than {_MOST_NODES} values, aliases followed")
        if isinstance(node, yaml.SequenceNode):
            stack.extend(node.value)
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                stack += (key, value)
