"""Reads the facts of an event: its fields, and those of the message that is sealed in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from storymesh.events.v1 import auth_events_pb2, story_events_pb2

from kit.events.envelope import Event, Undecodable, time_in, uuid_in
from kit.events.handlers import Permanent
from kit.identity.sealing import Seal, Unsealable

from ..model.letters import Facts, by_actors
from ..model.notices import NO_NEWS_OTHERWISE, NOTICES_OF, Notice
from ..model.notifications import Actor

_FILES = (auth_events_pb2, story_events_pb2)
_PACKAGE = auth_events_pb2.DESCRIPTOR.package
_MESSAGES: Mapping[str, Any] = {
    name: getattr(file, name) for file in _FILES for name in file.DESCRIPTOR.message_types_by_name
}
_UTC = "UTC"
_TIME = "google.protobuf.Timestamp"


@dataclass(frozen=True, slots=True)
class Reading:
    """What an event says, as the row of its notice tells where to find it."""

    notice: Notice
    facts: Facts
    person: UUID | None
    """The person to be told; None if the event names an address alone."""
    about: UUID | None
    """The id of what it is about; None: it is about the person's account."""
    expires_at: datetime | None
    """After which it is not sent any more; None: nothing in the event says so."""
    actor: Actor | None = None
    """The person who did what it tells of."""
    series: UUID | None = None
    """What it shares with others of which only the latest is sent; None: it stands alone."""
    reader: UUID | None = None
    """The account whose owner reads it in their language, although it is told to an address alone, as a code is."""
    language: str = ""
    """The reader's; empty: the default."""
    time_zone: str = _UTC
    """The reader's, by its IANA name."""
    open_facts: Facts = field(default_factory=dict)
    """The facts that are not sealed in the event: no address and no code is among them."""

    @property
    def told(self) -> UUID:
        """The person to be told. Raises Permanent if the event names an address alone."""
        if self.person is None:
            raise Permanent(f"{self.notice.kind} is told to nobody with an account")
        return self.person

    @property
    def address(self) -> str | None:
        """The address that the event brings with it; None: the account's. Empty: an address that nobody has."""
        return self.facts.get("email") if self.notice.sealed else None


class FactReader:
    """Reads events of the table of notices."""

    def __init__(self, seal: Seal) -> None:
        self._seal = seal

    def read(self, event: Event) -> Reading | None:
        """What the event says; None if it is no news. Raises Undecodable, or Permanent if nothing can be made of it."""
        name = event.type.removeprefix(f"{_PACKAGE}.")
        message = event.decode(_MESSAGES[name])
        facts = _fields(message)
        notice = _row_of(name, facts)
        if notice is None:
            return None
        person = uuid_in(message, notice.person) if notice.person else None
        about = uuid_in(message, notice.about) if notice.about else None
        expires_at = time_in(message, notice.expires) if notice.expires else None
        actor = Actor(uuid_in(message, notice.actor[0]), facts[notice.actor[1]]) if notice.actor else None
        series = uuid_in(message, notice.series) if facts.get(notice.series) else None
        if actor:
            facts |= by_actors([actor.name], 1)
        sealed = self._sealed(notice, message)
        reader = None if person else _reader(sealed)
        return Reading(notice, facts | sealed, person, about, expires_at, actor, series, reader, open_facts=facts)

    def _sealed(self, notice: Notice, message: Any) -> dict[str, Any]:
        if notice.sealed is None:
            return {}
        field, name = notice.sealed
        kind = _MESSAGES[name]
        try:
            unsealed = kind()
            unsealed.ParseFromString(self._seal.unseal(kind.DESCRIPTOR.full_name, getattr(message, field)))
        except (Unsealable, ValueError):  # protobuf's DecodeError is a ValueError
            raise Permanent(
                "the sealed mail cannot be opened; do auth and notification have the same seal key?"
            ) from None
        return _fields(unsealed)


def event_types() -> tuple[str, ...]:
    """The full names of the events of the table."""
    return tuple(f"{_PACKAGE}.{name}" for name in NOTICES_OF)


def person_in(event: Event) -> UUID | None:
    """The person whom a notice of the event would be told to; None if it names nobody, or is no notice."""
    name = event.type.removeprefix(f"{_PACKAGE}.")
    for notice in NOTICES_OF.get(name, ()):
        if notice.person:
            try:
                return uuid_in(event.decode(_MESSAGES[name]), notice.person)
            except Undecodable:
                return None
    return None


def _reader(facts: Facts) -> UUID | None:
    """The account that a sealed mail names; None if it names none."""
    try:
        return UUID(facts.get("user_id", ""))
    except ValueError:
        return None


def _row_of(name: str, facts: Facts) -> Notice | None:
    for notice in NOTICES_OF[name]:
        if notice.when is None or facts[notice.when[0]] == notice.when[1]:
            return notice
    if name in NO_NEWS_OTHERWISE:
        return None
    raise Permanent(f"this version has no words for this {name}")


def _fields(message: Any) -> dict[str, Any]:
    """The fields by name: enum values by their name, or their number if this version does not know it; times in UTC."""
    return {field.name: _value(message, field) for field in message.DESCRIPTOR.fields}


def _value(message: Any, field: Any) -> Any:
    if field.enum_type is not None:
        number = getattr(message, field.name)
        known = field.enum_type.values_by_number.get(number)
        return known.name if known else number
    if field.message_type is not None and field.message_type.full_name == _TIME:
        return time_in(message, field.name)
    return getattr(message, field.name)
