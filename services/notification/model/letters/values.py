"""What templates are given: the facts of an event, made harmless."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ..acting import acting
from ..words import EXCERPT_LENGTH, NAME_LENGTH, TITLE_LENGTH, plain

Facts = Mapping[str, Any]
"""The fields of an event and of the message sealed in it, by name; enum values by name, times in UTC."""

_ACTORS = "actors"

_LENGTHS = {"first_name": NAME_LENGTH, "device_name": NAME_LENGTH, "title": TITLE_LENGTH, "description": TITLE_LENGTH}
"""The longest that a text is shown, by its name; others: EXCERPT_LENGTH."""

_OF_THE_MESH = frozenset({"code", "stop_token", "ip", "page_path"})
"""Texts that services make. They are shown as they are, although a token, a path or an IPv6 address may look like a link."""
_TOKEN = re.compile(r"[0-9A-Za-z._~:/-]{0,400}")

_HTTP = re.compile(r"https?://[!#-;=?-~]+")


class Link(str):
    """A URL that the mesh made; the only thing that templates link to. Raises ValueError if it is no absolute http(s) URL."""

    __slots__ = ()

    def __new__(cls, text: str) -> Link:
        if not _HTTP.fullmatch(text):
            raise ValueError("is no http or https URL")
        return super().__new__(cls, text)


def by_actors(names: Sequence[str], count: int) -> dict[str, Any]:
    """The fact that `count` people, the latest with these names, did what a notice tells of."""
    return {_ACTORS: (tuple(names), count)}


def headed(title: str, facts: Facts, language: str) -> str:
    """The title, with those at its beginning who did what it tells of, if that is somebody else than its reader."""
    if _ACTORS not in facts:
        return title
    names, count = facts[_ACTORS]
    return f"{acting(names, count, language)} {title}"


def harmless(facts: Facts, *, of_people: bool = True) -> dict[str, object]:
    """The facts as a letter may show them: texts on one line, without links, and cut; times in UTC.

    Without `of_people`, texts that people may have chosen are empty. What is neither text, number nor time is left out.
    """
    shown = ((name, _shown(name, fact, of_people=of_people)) for name, fact in facts.items())
    return {name: fact for name, fact in shown if fact is not None}


def _shown(name: str, fact: object, *, of_people: bool) -> object:
    match fact:
        case Link() | int():
            return fact
        case str() if name in _OF_THE_MESH and _TOKEN.fullmatch(fact):
            return fact
        case str():
            return plain(fact, _LENGTHS.get(name, EXCERPT_LENGTH)) if of_people else ""
        case datetime():
            return fact.astimezone(UTC)
        case _:
            return None
