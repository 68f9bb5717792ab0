"""Reads one event of an answer. Tolerates any JSON in place of a field, because endpoints differ and some are faulty."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from .. import Refusal, Usage, WriterRefused
from .event_stream import ServerSentEvent

# The largest count that fits: an int32 in the contract, an integer in the database.
_MOST_TOKENS = 2**31 - 1
_TEXT_PARTS = frozenset({"text", "output_text"})
_KEEP_ALIVES = frozenset({"ping", "heartbeat", "keepalive", "keep-alive", "comment"})
_SURROGATE = re.compile("[\ud800-\udfff]")


class ErrorEvent(Exception):
    """Raised when the endpoint sends an error in place of a piece of its answer."""

    def __init__(self, body: object) -> None:
        super().__init__("an error in the stream")
        self.body = body


@dataclass(frozen=True, slots=True)
class Delta:
    """The content of one event of the stream. `starts_over`: all text before it was reasoning."""

    text: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
    starts_over: bool = False


def read(event: ServerSentEvent) -> Delta:
    """Read an event. Raises ErrorEvent, WriterRefused when the model declines, and ValueError for malformed data.

    The Delta may be empty: Azure sends choices without a delta, for its content filter, and others send keep-alives.
    """
    if event.name in _KEEP_ALIVES:
        return Delta()
    try:
        chunk = json.loads(event.data)
    except (ValueError, RecursionError):
        if event.name == "error":
            raise ErrorEvent(event.data) from None
        raise ValueError("it is no JSON") from None
    if chunk is None:
        return Delta()
    if not isinstance(chunk, Mapping):
        raise ValueError("it is no object")
    if event.name == "error" or chunk.get("error") or chunk.get("object") == "error" or chunk.get("type") == "error":
        raise ErrorEvent(chunk)
    choice = _first(chunk.get("choices"))
    delta = _mapping(choice.get("delta"))
    if delta.get("refusal"):
        raise WriterRefused(Refusal.CONTENT_REFUSED, "the model declined")
    feedback = chunk.get("prompt_feedback") or chunk.get("promptFeedback")
    if isinstance(feedback, Mapping) and (feedback.get("block_reason") or feedback.get("blockReason")):
        raise WriterRefused(Refusal.CONTENT_REFUSED, "the endpoint blocked the request")
    reason, usage = choice.get("finish_reason"), chunk.get("usage")
    return Delta(
        text="" if _is_thought(delta) else _text(delta.get("content")),
        finish_reason=str(reason) if reason else None,
        usage=_usage(usage) if usage and isinstance(usage, Mapping) else None,
    )


def _first(choices: object) -> Mapping[str, object]:
    if choices is None:
        return {}
    if not isinstance(choices, list):
        raise ValueError("its choices are no list")
    return _mapping(choices[0]) if choices else {}


def _mapping(value: object) -> Mapping[str, object]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError("an object is missing")
    return value


def _text(content: object) -> str:
    """Return the text of a content, which is a string or a list of parts; parts of unknown types are left out."""
    if not content:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(map(_text, content))
    if not isinstance(content, Mapping):
        raise ValueError("its content is no text")
    if content.get("type") == "refusal":
        raise WriterRefused(Refusal.CONTENT_REFUSED, "the model declined")
    if content.get("type", "text") not in _TEXT_PARTS or _is_thought(content):
        return ""
    text = content.get("text")
    return _text(text.get("value") if isinstance(text, Mapping) else text)


def _is_thought(part: Mapping[str, object]) -> bool:
    """True for a part that Gemini marks as reasoning."""
    extra = part.get("extra_content")
    google = extra.get("google") if isinstance(extra, Mapping) else None
    return part.get("thought") is True or (isinstance(google, Mapping) and google.get("thought") is True)


def _usage(sent: Mapping[str, object]) -> Usage:
    return Usage(_counted(sent.get("prompt_tokens")), _counted(sent.get("completion_tokens")))


def _counted(tokens: object) -> int:
    """Turn a token count of any JSON type into one that can be stored. Never raises: a bad count must not fail a finished story."""
    if not isinstance(tokens, int | float) or (isinstance(tokens, float) and math.isnan(tokens)):
        return 0
    return int(min(max(tokens, 0), _MOST_TOKENS))


class Surrogates:
    """Joins surrogate pairs (one character as two JSON escapes) that an endpoint has split over two events.

    A surrogate without its other half is left out.
    """

    def __init__(self) -> None:
        self._half = ""

    def join(self, text: str) -> str:
        text, self._half = self._half + text, ""
        if not _SURROGATE.search(text):
            return text
        if "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")
