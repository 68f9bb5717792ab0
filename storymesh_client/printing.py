"""Formats answers and errors for the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode
from storymesh.auth.v1.session_pb2 import Session
from storymesh.story.v1.story_pb2 import Story, StoryState

from .errors import NOT_SIGNED_IN, StorymeshError

_SIGN_IN_AGAIN = {
    NOT_SIGNED_IN: "Nobody is signed in. Sign in first: storymesh sign-in",
    "REFRESH_INVALID": "The session has ended. Sign in again: storymesh sign-in",
    "REFRESH_REUSED": "The session was ended, because its token came twice. Sign in again: storymesh sign-in",
    "SESSION_REVOKED": "The session was ended. Sign in again: storymesh sign-in",
    "UNAUTHENTICATED": "The session is not taken. Sign in again: storymesh sign-in",
    "TOKEN_INVALID": "The session is not taken. Sign in again: storymesh sign-in",
    "TOKEN_EXPIRED": "The session is not taken. Sign in again: storymesh sign-in",
}


def sentence(error: StorymeshError, edge: str) -> str:
    """A sentence that says what is wrong and what to do, for an error of a call to `edge`."""
    if needs_sign_in(error):
        return _SIGN_IN_AGAIN[error.reason]
    wait = error.retry_after
    again = f" Try again in {max(1, round(wait.total_seconds()))} s." if wait else ""
    match error.code():
        case StatusCode.UNAVAILABLE if not error.reason:
            what = f"Nothing answers at {edge}. Is the mesh up, and is --edge right?"
        case StatusCode.UNAVAILABLE:
            what = "The mesh cannot answer at the moment."
        case StatusCode.DEADLINE_EXCEEDED:
            what = f"The mesh at {edge} took too long to answer. Try again."
        case StatusCode.PERMISSION_DENIED:
            what = "This account may not do that."
        case _ if error.violations:
            what = "\n".join(f"{each.field}: {each.description}" for each in error.violations)
        case _:
            message = error.message.rstrip(".")
            what = f"{message[:1].upper()}{message[1:]}."
    return plain(what) + again


def needs_sign_in(error: StorymeshError) -> bool:
    return error.code() is StatusCode.UNAUTHENTICATED and error.reason in _SIGN_IN_AGAIN


def sessions(listed: Sequence[Session], *, as_json: bool) -> str:
    if as_json:
        return list_as_json("sessions", listed)
    rows = [
        (
            each.id,
            each.device_name or each.user_agent,
            each.ip,
            time(each.last_use_time),
            time(each.expire_time),
            "this one" if each.current else "",
        )
        for each in listed
    ]
    return table(("id", "device", "address", "last used", "ends", ""), rows)


def stories(listed: Sequence[Story], *, as_json: bool) -> str:
    if as_json:
        return list_as_json("stories", listed)
    rows = [
        (
            each.id,
            time(each.create_time),
            StoryState.Name(each.state).removeprefix("STORY_STATE_").lower(),
            each.title or each.theme,
        )
        for each in listed
    ]
    return table(("id", "asked for", "state", "title"), rows)


def fields(pairs: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"{name:<10}{plain(value)}" for name, value in pairs if value)


def as_json(message: Message) -> str:
    """The message in the JSON form of the edge."""
    return json.dumps(_document(message), indent=2, ensure_ascii=False)


def time(timestamp: Timestamp) -> str:
    """A time in UTC, as in logs; empty if it is unset."""
    return f"{timestamp.ToDatetime():%Y-%m-%d %H:%M:%S} UTC" if timestamp.seconds else ""


def plain(text: str) -> str:
    """The text without control characters except line breaks: names of devices and titles are untrusted input."""
    return "".join(each for each in text if each.isprintable() or each == "\n")


def list_as_json(name: str, messages: Iterable[Message]) -> str:
    return json.dumps({name: [_document(each) for each in messages]}, indent=2, ensure_ascii=False)


def _document(message: Message) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    clean = [headings, *([plain(cell).replace("\n", " ") for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in clean) for column in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in clean
    )
