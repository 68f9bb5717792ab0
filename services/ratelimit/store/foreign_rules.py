"""Converts rules of envoyproxy/ratelimit into ours, so that every call is decided alike. What cannot be kept is told by line.

That service goes down its nested descriptors by the most specific key and value of each level, and never back up: where the chosen
branch has no limit, none applies. Ours goes on to a more general rule, so such a branch becomes a rule that is unlimited.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from ..model import MICROSECONDS
from ..model.matching import DescriptorEntry
from .yaml_reading import Faults, Node, documents, required

_KEYS = (
    "key",
    "value",
    "rate_limit",
    "descriptors",
    "shadow_mode",
    "quota_mode",
    "detailed_metric",
    "value_to_metric",
    "share_threshold",
)
_LIMIT_KEYS = ("unit", "requests_per_unit", "unlimited", "name", "replaces")
_UNITS = {
    "second": (1, "s"),
    "minute": (60, "min"),
    "hour": (3600, "h"),
    "day": (86_400, "d"),
    "week": (7 * 86_400, "w"),
    "month": (30 * 86_400, "30d"),
    "year": (365 * 86_400, "365d"),
}
_DEEPEST = 32

_HEAD = """\
# From {path}. Its counts begin anew with each unit of the clock; here as many calls pass at once, and come back
# one by one within the unit, so that no two units' calls pass within a moment.
"""


@dataclass
class _Limit:
    requests: int | None
    """None: unlimited."""

    unit: str
    name: str
    replaces: list[Node]


@dataclass
class _Branch:
    """A descriptor of the file, with those nested in it."""

    node: Node
    entry: DescriptorEntry
    limit: _Limit | None
    shadow: bool
    below: list[_Branch] = field(default_factory=list)


@dataclass
class _Made:
    """A rule of ours, still without its name."""

    line: int
    match: tuple[DescriptorEntry, ...]
    limit: _Limit | None
    shadow: bool


class Conversion:
    """Our form of a file, and what it could not keep. Raises BadRules for a file that envoyproxy/ratelimit would refuse."""

    def __init__(self, path: Path) -> None:
        self.notices: list[str] = []
        faults = Faults()
        texts = [self._document(node) for node in documents(path, faults)]
        faults.raise_if_any()
        self.text = _HEAD.format(path=path.name) + "---\n".join(texts)

    def _notice(self, at: Node, sentence: str) -> None:
        self.notices.append(f"{at.path}:{at.line}: {sentence}")

    def _document(self, node: Node) -> str:
        fields = node.fields(("domain", "descriptors"), "a file of envoyproxy/ratelimit")
        if fields is None:
            return ""
        domain = required(fields, node, "domain", Node.text)
        nested = fields["descriptors"].items() if "descriptors" in fields else []
        branches = self._level(nested, 1)
        made = list(self._rules(branches, ()))
        return f"domain: {_quoted(domain or '?')}\non_no_match: allow\nrules:\n" + "".join(
            self._written(domain or "?", made)
        )

    def _level(self, nodes: Sequence[Node], depth: int) -> list[_Branch]:
        branches: list[_Branch] = []
        for node in nodes:
            if depth > _DEEPEST:
                node.fault(f"descriptors stand more than {_DEEPEST} deep")
                return []
            branch = self._branch(node, depth)
            if branch is None:
                continue
            earlier = next((each for each in branches if _hides(each.entry, branch.entry)), None)
            if earlier is None:
                branches.append(branch)
            elif earlier.entry == branch.entry and earlier.entry.prefix is None and earlier.entry.value is not None:
                node.fault(f"{branch.entry} is in line {earlier.node.line} already")
            else:
                self._notice(node, f"never reached, because line {earlier.node.line} matches first; left out")
        return branches

    def _branch(self, node: Node, depth: int) -> _Branch | None:
        fields = node.fields(_KEYS, "a descriptor")
        if fields is None:
            return None
        key = required(fields, node, "key", Node.text)
        if key is None:
            return None
        if key.endswith("*") and "value" not in fields:
            self._notice(node, f"the * in the key {key} is no wildcard here, it matches that key only")
        shared = _true(fields, "share_threshold")
        entry = _entry(key, fields["value"].scalar if "value" in fields else "", shared=shared)
        if shared and entry.prefix is None:
            fields["share_threshold"].fault("stands beside values that end in * only")
        for name in ("detailed_metric", "value_to_metric"):
            if _true(fields, name):
                self._notice(fields[name], f"{name} is not kept: metrics have the names of rules, never values")
        if _true(fields, "quota_mode"):
            self._notice(fields["quota_mode"], "quota_mode becomes shadow: counted and told, never refused")
        return _Branch(
            node,
            entry,
            self._limit(fields["rate_limit"]) if "rate_limit" in fields else None,
            _true(fields, "shadow_mode") or _true(fields, "quota_mode"),
            self._level(fields["descriptors"].items(), depth + 1) if "descriptors" in fields else [],
        )

    def _limit(self, node: Node) -> _Limit | None:
        fields = node.fields(_LIMIT_KEYS, "a rate_limit")
        if fields is None:
            return None
        name = fields["name"].scalar if "name" in fields else ""
        replaces = [
            each for item in (fields["replaces"].items() if "replaces" in fields else []) for each in _name(item)
        ]
        for each in replaces:
            if each.scalar == name:
                each.fault("a limit cannot replace itself")
        unit = fields["unit"].scalar.lower() if "unit" in fields else ""
        if _true(fields, "unlimited"):
            if unit in _UNITS:
                fields["unit"].fault("says nothing beside unlimited")
            return _Limit(None, "", name, replaces)
        if unit not in _UNITS:
            (fields.get("unit") or node).fault(f"unit must be one of {', '.join(_UNITS)}")
            return None
        requests = fields["requests_per_unit"].number(0, 2**32 - 1) if "requests_per_unit" in fields else 0
        if requests is None:
            return None
        return _Limit(
            self._countable(fields["requests_per_unit"], requests, unit) if requests else 0, unit, name, replaces
        )

    def _countable(self, node: Node, requests: int, unit: str) -> int:
        """The requests, or the highest lower number that whole microseconds can count to one percent."""
        microseconds = _UNITS[unit][0] * MICROSECONDS
        interval = -(-microseconds // requests)
        if interval * requests * 100 <= microseconds * 101:
            return requests
        lower = -(-microseconds // interval)
        self._notice(node, f"{requests} per {unit} cannot be counted exactly; {lower} in its place")
        return lower

    def _rules(self, branches: Sequence[_Branch], above: tuple[DescriptorEntry, ...]) -> Iterator[_Made]:
        for branch in branches:
            match = (*above, branch.entry)
            line = branch.node.line
            if branch.limit is not None or not branch.below:
                yield _Made(line, match, branch.limit, branch.shadow)
            yield from self._rules(branch.below, match)
            own = [path for path, decided in _paths(branch) if decided]
            hidden = [
                path
                for other in branches
                if other is not branch and other.entry.covers(branch.entry)
                for path, decided in _paths(other)
                if decided and not any(_covers(each, path) for each in own)
            ]
            for path in dict.fromkeys(hidden):
                yield _Made(line, match + path, None, shadow=False)

    def _written(self, domain: str, made: Sequence[_Made]) -> Iterator[str]:
        names = _names(made)
        by_name: dict[str, list[str]] = defaultdict(list)
        for name, rule in zip(names, made, strict=True):
            if rule.limit is not None and rule.limit.name:
                by_name[rule.limit.name].append(name)
        for name, rule in zip(names, made, strict=True):
            replaces = []
            for node in rule.limit.replaces if rule.limit else ():
                found = [each for each in by_name.get(node.scalar, ()) if each != name]
                if not found:
                    self._notice(node, f"no limit of {domain} has the name {node.scalar}, so nothing is replaced")
                replaces += found
            yield _text(name, rule, sorted(set(replaces)))


def _entry(key: str, value: str, *, shared: bool) -> DescriptorEntry:
    if value == "*" or not value:
        return DescriptorEntry(key, shared=shared)
    if value.endswith("*"):
        return DescriptorEntry(key, prefix=value[:-1], shared=shared)
    return DescriptorEntry(key, value=value)


def _hides(earlier: DescriptorEntry, later: DescriptorEntry) -> bool:
    """Whether no value reaches the later of two descriptors of one level. The first wildcard that matches is chosen there."""
    if earlier.key != later.key:
        return False
    if later.prefix is not None:
        return earlier.prefix is not None and later.prefix.startswith(earlier.prefix)
    return replace(earlier, shared=False) == replace(later, shared=False)


def _paths(branch: _Branch) -> Iterator[tuple[tuple[DescriptorEntry, ...], bool]]:
    """The paths from a branch to itself and each one below, and whether a rule stands there: a limit, or an end without one."""
    yield (), branch.limit is not None or not branch.below
    for each in branch.below:
        for path, decided in _paths(each):
            yield (each.entry, *path), decided


def _covers(one: tuple[DescriptorEntry, ...], other: tuple[DescriptorEntry, ...]) -> bool:
    """Whether a rule at the one path matches all that a rule at the other matches."""
    return len(one) == len(other) and all(mine.covers(theirs) for mine, theirs in zip(one, other, strict=True))


def _true(fields: dict[str, Node], key: str) -> bool:
    return key in fields and fields[key].truth() is True


def _name(item: Node) -> Iterable[Node]:
    fields = item.fields(("name",), "an item of replaces")
    if fields is None:
        return ()
    if "name" not in fields or not fields["name"].scalar:
        item.fault("has no name")
        return ()
    return (fields["name"],)


def _names(made: Sequence[_Made]) -> list[str]:
    """A name for each rule: its own, or else its path; numbered where two would be alike."""
    taken: set[str] = set()
    names = []
    for rule in made:
        own = rule.limit.name if rule.limit is not None else ""
        path = own or ".".join(f"{each.key}_{str(each).partition('=')[2]}".removesuffix("_*") for each in rule.match)
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", path).strip("-_.")[:110] or "rule"
        name, number = plain, 1
        while name in taken:
            number += 1
            name = f"{plain}-{number}"
        taken.add(name)
        names.append(name)
    return names


def _text(name: str, rule: _Made, replaces: Sequence[str]) -> str:
    lines = [f"  # Line {rule.line}.", f"  - name: {_quoted(name)}", "    match:"]
    lines += [f"      - {_entry_text(entry)}" for entry in rule.match]
    limit = rule.limit
    if limit is None or limit.requests is None:
        lines.append("    unlimited: true")
    elif limit.requests == 0:
        lines.append("    block: true")
    else:
        lines += [
            f"    rate: {limit.requests}/{_UNITS[limit.unit][1]}",
            f"    burst: {limit.requests}",
            "    on_redis_down: closed",
        ]
    if rule.shadow and limit is not None:
        lines.append("    shadow: true")
    if replaces:
        lines.append(f"    replaces: [{', '.join(map(_quoted, replaces))}]")
    return "\n".join(lines) + "\n"


def _entry_text(entry: DescriptorEntry) -> str:
    parts = [f"key: {_quoted(entry.key)}"]
    if entry.value is not None:
        parts.append(f"{'exact' if '*' in entry.value else 'value'}: {_quoted(entry.value)}")
    elif entry.prefix is not None:
        # A star within the prefix is one of the value's own signs, and would be refused if it were not at the end.
        parts.append(f"value: {_quoted(entry.prefix + '*')}")
    if entry.shared:
        parts.append("shared: true")
    return f"{{{', '.join(parts)}}}"


def _quoted(text: str) -> str:
    """The text as a YAML scalar, in quotes where it needs them."""
    return yaml.safe_dump(
        text, default_style=None if re.fullmatch(r"[A-Za-z][A-Za-z0-9_./-]*", text) else '"', width=10**6
    ).split("\n", 1)[0]
