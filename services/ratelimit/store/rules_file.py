"""Reads rules from YAML. A mistake is refused with its place in the file and the correction, never guessed at."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from services.ratelimit.model.rules import DescriptorEntry, OnNoMatch, OnRedisDown, Rule, RuleSet

from ..model import MICROSECONDS, Limit

_RATE = re.compile(r"(?P<requests>[1-9]\d{0,9})/(?P<count>[1-9]\d{0,3})?(?P<unit>s|min|h|d)")
_UNIT_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86_400}
_LONGEST_PERIOD_SECONDS = 30 * 86_400
_SHORTEST_INTERVAL = 100
"""Microseconds. Below it, rounding to whole microseconds would distort a rate by more than 1 %."""

_LONGEST_FILL = 366 * 86_400 * MICROSECONDS
"""Microseconds. Keeps every sum in the range where doubles are exact."""


class BadRules(Exception):
    """The rules cannot be used. The message has a sentence for each mistake."""


def load(path: Path) -> RuleSet:
    """Read and check the file. Raises BadRules."""
    try:
        content = yaml.load(path.read_bytes(), Loader=_Loader)  # noqa: S506  # derived from the safe loader
        return _File.model_validate(content).to_rules()
    except OSError as error:
        raise BadRules(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise BadRules("\n".join(f"{path}: {_sentence(details)}" for details in error.errors())) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # Some mistakes are not a YAMLError: an impossible date and text that is not UTF-8 are a ValueError.
        raise BadRules(f"{path} is not YAML: {' '.join(str(error).split())}") from None


class _Loader(yaml.SafeLoader):
    """Refuses duplicate keys in a mapping, of which YAML would silently drop one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for key, times in keys.items():
            if times > 1:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' is written twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _rate(value: object) -> tuple[int, int]:
    match = _RATE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is not a rate; write requests per time, such as 10/s, 300/min or 5/15min")
    requests = int(match["requests"])
    period_seconds = int(match["count"] or 1) * _UNIT_SECONDS[match["unit"]]
    if period_seconds > _LONGEST_PERIOD_SECONDS:
        raise ValueError(f"{value!r} spans more than 30 days; choose a shorter time")
    if requests * _SHORTEST_INTERVAL > period_seconds * MICROSECONDS:
        raise ValueError(f"{value!r} is more than 10000 in a second; choose a lower rate")
    return requests, period_seconds


_Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=64)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Entry(_Strict):
    key: Annotated[str, Field(min_length=1)]
    value: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _value_is_meant(cls, content: object) -> object:
        if isinstance(content, dict) and "value" in content and content["value"] is None:
            raise ValueError("value is empty; leave the key out to match any value")
        return content


class _Rule(_Strict):
    name: _Name
    match: Annotated[list[_Entry], Field(min_length=1)]
    rate: Annotated[tuple[int, int], BeforeValidator(_rate)]
    burst: Annotated[int, Field(ge=1, le=1_000_000_000)]
    on_redis_down: Literal["open", "closed"]

    @model_validator(mode="after")
    def _fills_within_a_year(self) -> _Rule:
        if self.limit.capacity > _LONGEST_FILL:
            raise ValueError("a burst this large takes more than a year to come back; lower burst or raise rate")
        return self

    @property
    def limit(self) -> Limit:
        requests, period_seconds = self.rate
        return Limit(requests, period_seconds, self.burst)

    def to_rule(self) -> Rule:
        match = tuple(DescriptorEntry(entry.key, entry.value) for entry in self.match)
        return Rule(self.name, match, self.limit, OnRedisDown(self.on_redis_down))


class _File(_Strict):
    domain: _Name
    on_no_match: Literal["allow", "deny"]
    rules: Annotated[list[_Rule], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_are_unique(self) -> _File:
        twice = sorted(name for name, times in Counter(rule.name for rule in self.rules).items() if times > 1)
        if twice:
            raise ValueError(f"rules share the name {', '.join(twice)}; rules with one name would share their buckets")
        return self

    def to_rules(self) -> RuleSet:
        return RuleSet(self.domain, OnNoMatch(self.on_no_match), tuple(rule.to_rule() for rule in self.rules))


_SENTENCES = {
    "missing": "is missing; write it, nothing here has a default",
    "extra_forbidden": "is not a key that rules have; remove it or correct its spelling",
    "string_type": "must be text; put it in quotes",
    "string_pattern_mismatch": "may have small letters, digits and hyphens only",
    "model_type": "must be a mapping of keys to values",
    "list_type": "must be a list, each item after a hyphen",
    "too_short": "must have at least one item",
}


def _sentence(details: ErrorDetails) -> str:
    problem = _SENTENCES.get(details["type"]) or details["msg"].removeprefix("Value error, ")
    place = ""
    for part in details["loc"]:
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    return f"{place}: {problem}" if place else problem
