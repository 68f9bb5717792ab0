"""Translation of an endpoint's errors into WriterUnavailable and WriterRefused, with the endpoint's message for the log.

The message may quote the request, so it passes through `Redaction`: a log must hold neither the key nor a reader's wishes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from .. import Refusal, WriterRefused, WriterUnavailable
from ..prose import one_line, word_set

Failure = WriterUnavailable | WriterRefused

_PASSING_STATUSES = frozenset({408, 409, 425, 429})

# Finish reasons, in lower case. The first five are what OpenAI's "stop" is called by others that speak its protocol.
_ENDS = frozenset({"stop", "eos", "eos_token", "end_turn", "stop_sequence", "complete"})
_LIMITS = word_set(
    "length max_tokens max_length max_output_tokens model_length model_context_window_exceeded error_limit"
)
_REFUSALS = word_set(
    "content_filter content_filtered safety image_safety prohibited_content recitation blocklist spii"
    " refusal refused sensitive moderation guardrail_intervened error_toxic content_policy_violation"
)

# Error codes and types, in lower case.
_FLAGGED = "flagged_input"
_REFUSING_CODES = (
    _REFUSALS
    | {_FLAGGED}
    | word_set("moderation_blocked responsibleaipolicyviolation data_inspection_failed datainspectionfailed")
)
# Permanent although OpenAI sends status 429: the account has no credit left.
_SPENT_CODES = word_set(
    "insufficient_quota billing_hard_limit_reached billing_not_active billing_error insufficient_balance"
    " insufficient_credits account_deactivated"
)
# Permanent, and they may come without an error status: inside a stream, or with status 200.
_LASTING_CODES = word_set(
    "invalid_api_key incorrect_api_key authentication_error unauthenticated permission_error"
    " api_key_invalid permission_denied model_not_found context_length_exceeded unsupported_parameter unsupported_value"
)
_LASTING_WITHOUT_STATUS = word_set("invalid_request_error badrequesterror invalid_argument not_found_error")

# The fields of a body that may hold the message, in order of preference.
_MESSAGES = (
    "message",
    "Message",
    "msg",
    "detail",
    "errors",
    "error_description",
    "title",
    "status_msg",
    "base_resp",
    "error",
)
_CODES = frozenset({"code", "type", "status", "reason", "status_code"})
_PARTS = frozenset({"error", "detail", "details", "errors", "innererror", "metadata", "base_resp"})
_ERROR_STATUS = re.compile(r"[45][0-9]{2}", re.ASCII)
_DEPTH = 6

_MOST_CHARACTERS = 200
_LONGEST_RETRY_AFTER = 86_400.0
_SECONDS = re.compile(r"\d+(\.\d+)?", re.ASCII)

_HIDDEN = "[hidden]"
_LONG_KEY = 12
_AROUND = ".,:;!?'\"()[]{}<>…"
_QUOTED_CHARACTERS = 12
_SHORTEST_WISH = 4


class Redaction:
    """Cuts an endpoint's message to one line of at most 200 characters, without the key and the reader's wishes.

    Endpoints quote keys whole or with asterisks in the middle, and wishes whole or cut. So it hides each word that contains six
    consecutive characters of the key, begins or ends with its first or last four, or contains asterisks; and each passage that
    shares twelve consecutive characters with a wish.
    """

    def __init__(self, api_key: str, wishes: Iterable[str]) -> None:
        size = min(len(api_key), 6)
        self._key_parts = {api_key[i : i + size].lower() for i in range(len(api_key) - size + 1)} - {""}
        low = api_key.lower()
        self._key_ends = (low[:4], low[-4:]) if len(low) >= _LONG_KEY else ()
        texts = [one_line(wish).lower() for wish in wishes]
        self._wishes = [
            form for text in texts for form in {text, json.dumps(text)[1:-1]} if len(form) >= _SHORTEST_WISH
        ]

    def __call__(self, text: str) -> str:
        words = self._without_wishes(one_line(text[:4000]))
        shown = " ".join(self._without_key(word) for word in words.split(" "))
        return shown if len(shown) <= _MOST_CHARACTERS else shown[: _MOST_CHARACTERS - 1] + "…"

    def _without_key(self, word: str) -> str:
        low = word.lower().strip(_AROUND)
        ends = any(low.startswith(end) or low.endswith(end) for end in self._key_ends)
        return _HIDDEN if ends or "**" in word or any(part in low for part in self._key_parts) else word

    def _without_wishes(self, text: str) -> str:
        low = text.lower()
        if len(low) != len(text):
            low = text  # A few letters become longer in lower case; then only exact quotations are found.
        hidden = bytearray(len(text))
        for wish in self._wishes:
            size = min(len(wish), _QUOTED_CHARACTERS)
            for start in range(len(low) - size + 1):
                if low[start : start + size] in wish and (size == _QUOTED_CHARACTERS or low.startswith(wish, start)):
                    hidden[start : start + size] = b"\1" * size
        return "".join(_runs(text, hidden))


def _runs(text: str, hidden: bytearray) -> Iterator[str]:
    for index, char in enumerate(text):
        if not hidden[index]:
            yield char
        elif not index or not hidden[index - 1]:
            yield _HIDDEN


@dataclass(frozen=True, slots=True)
class Complaint:
    """The content of an error's body. `codes` are its codes, types and states in lower case, `status` an HTTP status among them."""

    words: str
    codes: frozenset[str]
    status: int | None

    @classmethod
    def read(cls, body: object) -> Complaint:
        """Read JSON of any shape: OpenAI's, Google's list of one, FastAPI's `detail`, Ollama's string.

        The message is taken only from fields meant for it, because the rest of a body may repeat the whole request.
        """
        codes = frozenset(_codes(body))
        statuses = [int(code) for code in codes if _ERROR_STATUS.fullmatch(code)]
        return cls(_message(body), codes, min(statuses, default=None))

    @classmethod
    def parse(cls, text: str) -> Complaint:
        """Parse a body. One that is not JSON, such as a proxy's page, becomes the message as a whole."""
        try:
            complaint = cls.read(json.loads(text))
        except (ValueError, RecursionError):
            return cls(text, frozenset(), None)
        return complaint if complaint.words else cls(text, complaint.codes, complaint.status)

    def failure(self, description: str, status: int | None, retry_after: float | None = None) -> Failure:
        """Translate a complaint into an exception. `status` is None inside a stream and for a 200 with an error in the body."""
        if self.codes & _REFUSING_CODES:
            return WriterRefused(Refusal.CONTENT_REFUSED, description)
        if self.codes & _SPENT_CODES:
            return WriterRefused(Refusal.WRITER_MISCONFIGURED, f"the account is exhausted: {description}")
        lasting = self.codes & (_LASTING_CODES if status or self.status else _LASTING_CODES | _LASTING_WITHOUT_STATUS)
        status = status or self.status or 500
        if lasting or not (status >= 500 or status in _PASSING_STATUSES):
            return WriterRefused(Refusal.WRITER_MISCONFIGURED, description)
        return WriterUnavailable(description, retry_after=retry_after)


def _message(part: object, depth: int = _DEPTH) -> str:
    if isinstance(part, str):
        return part
    if depth == 0:
        return ""
    if isinstance(part, list):
        return "; ".join(filter(None, (_message(each, depth - 1) for each in part)))
    if not isinstance(part, Mapping):
        return ""
    where = part.get("loc")
    prefix = ".".join(map(str, where)) + ": " if isinstance(where, list) else ""
    return next((prefix + words for name in _MESSAGES if (words := _message(part.get(name), depth - 1))), "")


def _codes(part: object, depth: int = _DEPTH) -> Iterator[str]:
    """The codes of an error, in lower case. OpenRouter sends no code but the flagged input."""
    if isinstance(part, list) and depth:
        for each in part:
            yield from _codes(each, depth - 1)
    if not isinstance(part, Mapping):
        return
    for name, value in part.items():
        if name in _CODES and isinstance(value, str | int):
            yield str(value).lower()
        elif name == _FLAGGED:
            yield name
        elif name in _PARTS and depth:
            yield from _codes(value, depth - 1)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of Retry-After, at most a day, or None (RFC 9110, 10.2.3; `retry-after-ms` is OpenAI's and Azure's).

    A date is compared with the answer's own `Date`, so that the endpoint's clock need not agree with ours.
    """
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        value = headers.get(name, "").strip()
        if _SECONDS.fullmatch(value):
            return min(float(value) / unit, _LONGEST_RETRY_AFTER)
    try:
        then, now = (parsedate_to_datetime(headers.get(name, "")) for name in ("retry-after", "date"))
        return min(max((then - now).total_seconds(), 0.0), _LONGEST_RETRY_AFTER)
    except (ValueError, TypeError, OverflowError):
        return None


def interruption(finish_reason: str | None) -> Failure | None:
    """Translate a finish reason into an exception; None if the story is complete. An unknown reason counts as a failure."""
    reason = (finish_reason or "").lower()
    if reason in _ENDS:
        return None
    if reason in _REFUSALS:
        return WriterRefused(Refusal.CONTENT_REFUSED, f"the endpoint ended the story: {finish_reason}")
    if reason == "language":
        return WriterRefused(Refusal.LANGUAGE_UNSUPPORTED, "the model does not write this language")
    if reason in _LIMITS:
        return WriterRefused(
            Refusal.WRITER_MISCONFIGURED,
            f"the endpoint's token limit is too low for a story of this length: {finish_reason}",
        )
    said = f": {one_line(finish_reason)[:40]}" if finish_reason else " without a finish reason"
    return WriterUnavailable(f"the endpoint cut the story off{said}")
