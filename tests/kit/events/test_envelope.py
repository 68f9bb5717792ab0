"""Events and their envelope."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from storymesh.events.v1 import auth_events_pb2, envelope_pb2

from kit.events.envelope import VERSION, Event, Undecodable, from_bytes, time_in, uuid_in

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


def test_an_id_and_a_time_of_a_payload_are_read() -> None:
    user_id = uuid4()
    issued = auth_events_pb2.CodeIssued()
    issued.expire_time.FromDatetime(NOON)
    assert uuid_in(auth_events_pb2.UserRegistered(user_id=str(user_id)), "user_id") == user_id
    assert time_in(issued, "expire_time") == NOON


@pytest.mark.parametrize("text", ["", "ada@example.com", "0" * 31, "0" * 33])
def test_an_id_that_is_none_is_undecodable_and_not_quoted(text: str) -> None:
    with pytest.raises(Undecodable) as raised:
        uuid_in(auth_events_pb2.UserRegistered(user_id=text), "user_id")
    assert str(raised.value) == "storymesh.events.v1.UserRegistered: user_id is no UUID"


@pytest.mark.parametrize("seconds", [2**62, -(2**62), 253402300800, -62135596801])
def test_a_time_that_no_calendar_has_is_undecodable(seconds: int) -> None:
    issued = auth_events_pb2.CodeIssued()
    issued.expire_time.seconds = seconds
    with pytest.raises(Undecodable, match="expire_time is no time"):
        time_in(issued, "expire_time")


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
