"""Events and their envelope."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from storymesh.events.v1 import auth_events_pb2, envelope_pb2

from services.kit.events import VERSION, Event, Undecodable, from_bytes

NOON = datetime(2026, 6, 1, 12, 0, 0, 123456, tzinfo=UTC)


def event(**changes: object) -> Event:
    payload = auth_events_pb2.UserRegistered(user_id="u").SerializeToString()
    values = {
        "id": uuid4(),
        "type": "t",
        "key": "k",
        "occurred_at": NOON,
        "traceparent": "00-0",
        "payload": payload,
        **changes,
    }
    return Event(**values)  # type: ignore[arg-type]  # a table of changes


def test_an_event_comes_out_of_its_envelope_as_it_went_in() -> None:
    sent = event()
    assert from_bytes(sent.to_bytes()) == sent


@given(st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2200, 1, 1)))  # noqa: DTZ001  # hypothesis wants naive bounds
def test_times_keep_their_moment_and_stay_in_utc(moment: datetime) -> None:
    arrived = from_bytes(event(occurred_at=moment.replace(tzinfo=UTC)).to_bytes()).occurred_at
    assert arrived == moment.replace(tzinfo=UTC)
    assert arrived.utcoffset() == timedelta(0)


def test_a_time_of_another_zone_keeps_its_moment() -> None:
    local = NOON.astimezone(timezone(timedelta(hours=9)))
    assert from_bytes(event(occurred_at=local).to_bytes()).occurred_at == NOON


def test_the_payload_becomes_its_message() -> None:
    assert event().decode(auth_events_pb2.UserRegistered).user_id == "u"


def test_a_payload_that_is_no_message_is_undecodable() -> None:
    with pytest.raises(Undecodable):
        event(payload=b"\xff").decode(auth_events_pb2.UserRegistered)


@pytest.mark.parametrize("version", [0, VERSION + 1, -1])
def test_an_unknown_version_is_undecodable_rather_than_misread(version: int) -> None:
    with pytest.raises(Undecodable, match="version"):
        from_bytes(event(version=version).to_bytes())


def test_bytes_that_are_no_envelope_are_undecodable() -> None:
    beyond = envelope_pb2.Envelope(id=str(uuid4()), version=VERSION)
    beyond.occur_time.seconds = 2**62
    for data in (b"", b"\xff", b"{}", envelope_pb2.Envelope(id="7").SerializeToString(), beyond.SerializeToString()):
        with pytest.raises(Undecodable):
            from_bytes(data)


@given(st.binary())
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    with pytest.raises(Undecodable):
        from_bytes(data)
