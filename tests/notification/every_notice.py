"""An event of every row of the table of notices, so that a test over the table meets a new kind on the day it is added."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from kit.events.envelope import Event
from services.notification.model.deliveries import Channel
from services.notification.model.notices import NOTICES, Notice
from services.notification.operations.facts import _MESSAGES as MESSAGES
from tests.notification.conftest import SEAL, event

KINDS = tuple(sorted(kind for kind, row in NOTICES.items() if row.event))
"""Those that an event asks for."""
IN_APP = tuple(kind for kind in KINDS if Channel.IN_APP in NOTICES[kind].channels)
_TIME = "google.protobuf.Timestamp"


def event_of(kind: str, user: UUID, *, address: str = "ada@example.com", now: datetime | None = None) -> Event:
    """An event that tells the person of the kind. Times in it are an hour after `now`."""
    row: Notice = NOTICES[kind]
    later = (now or datetime.now(UTC)) + timedelta(hours=1)
    message = _filled(MESSAGES[row.event], user, address, later)
    if row.when:
        field, value = row.when
        number = message.DESCRIPTOR.fields_by_name[field].enum_type.values_by_name[value].number
        setattr(message, field, number)
    if row.person:
        setattr(message, row.person, str(user))
    if row.sealed:
        field, name = row.sealed
        sealed = _filled(MESSAGES[name], user, address, later)
        setattr(message, field, SEAL.seal(sealed.DESCRIPTOR.full_name, sealed.SerializeToString()))
    return event(message)


def _filled(message_type: Any, user: UUID, address: str, time: datetime) -> Any:
    """A message with something in each field."""
    message = message_type()
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None and field.message_type.full_name == _TIME:
            getattr(message, field.name).FromDatetime(time)
        elif field.name in ("user_id", "owner_id"):
            setattr(message, field.name, str(user))
        elif field.name == "email":
            message.email = address
        elif field.name.endswith("_id"):
            setattr(message, field.name, str(uuid4()))
        elif field.type == field.TYPE_STRING:
            setattr(message, field.name, f"{field.name.replace('_', ' ')} of Ada")
    return message
