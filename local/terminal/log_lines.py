"""Parses one line of a component's log, and renders it for a person or as JSON.

Services and Envoy write ECS JSON, the other servers text that begins with the time. All of them write UTC.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

_TEXT_TIMES = (
    # The first two forms are those of Postgres, the mail sink and the supervisor; the last is Redis'.
    (re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[.,]\d{3}) UTC "), "%Y-%m-%d %H:%M:%S.%f"),
    (re.compile(r"\d+:[A-Z] (\d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d\.\d{3}) "), "%d %b %Y %H:%M:%S.%f"),
)
_TRACE_ID = re.compile(r"([0-9a-f]{2}-)?(?P<id>[0-9a-f]{32})(?(1)-[0-9a-f]{16}-[0-9a-f]{2})", re.IGNORECASE)
_OMITTED_FIELDS = ("@timestamp", "message", "log.", "ecs.", "process.", "service.", "span.", "trace.", "event.")
"""Fields that a readable line omits, or shows in another form."""
_SHOWN_OF_A_REQUEST = ("client.ip", "user.id")
_OF_A_REQUEST = ("http.", "url.", "rpc.", "client.", "user.", "user_agent.", "envoy.", "error.")
_STACK_TRACE = "error.stack_trace"


@dataclass(frozen=True)
class LogLine:
    """A line of the log of `component`, without its line break."""

    component: str
    text: str
    at: float
    """Seconds since the epoch: the line's own time, or that of the line before if it has none."""

    fields: Mapping[str, Any] | None
    """The flattened fields of an ECS line; None for text."""

    message: str
    """The message, without the time."""

    def raw(self) -> str:
        """The line as JSON: itself if it is JSON, otherwise an ECS object with its text."""
        if self.fields is not None:
            return self.text
        at = datetime.fromtimestamp(self.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return json.dumps({"@timestamp": at, "message": self.text, "service": {"name": self.component}})

    def readable(self, width: int) -> str:
        """The line for a person: local time, component (padded to `width`), level, message, details; below it any stack trace."""
        at = datetime.fromtimestamp(self.at).astimezone().strftime("%m-%d %H:%M:%S.%f")[:-3]
        begin = f"{at}  {self.component:<{width}}  "
        if self.fields is None:
            return begin + " " * 9 + _printable(self.message)
        level = str(self.fields.get("log.level", "")).upper()
        words = [self.message, *_details(self.fields)]
        lines = [begin + f"{level:<7}  " + _printable("  ".join(words))]
        lines += (f"    {_printable(line)}" for line in str(self.fields.get(_STACK_TRACE, "")).splitlines())
        return "\n".join(lines)


def parse(component: str, texts: Sequence[str], before: float | None, otherwise: float) -> list[LogLine]:
    """Parse consecutive lines of a log.

    A line without a time gets that of the line before it. The first lines get `before`, else the first time found, else
    `otherwise`, all in seconds since the epoch.
    """
    read = [_read(component, text) for text in texts]
    at = before if before is not None else next((line.at for line in read if line.at), otherwise)
    lines = []
    for line in read:
        at = line.at or at
        lines.append(replace(line, at=at))
    return lines


def trace_id(text: str) -> str | None:
    """The trace id in lower case, from 32 hexadecimal digits or a whole `traceparent`; None for any other text."""
    found = _TRACE_ID.fullmatch(text.strip())
    return found["id"].lower() if found else None


def _read(component: str, text: str) -> LogLine:
    """The line with its own time, 0 if it has none."""
    if (fields := _ecs(text)) is not None:
        return LogLine(component, text, _seconds(str(fields["@timestamp"])), fields, str(fields.get("message", "")))
    for pattern, form in _TEXT_TIMES:
        if found := pattern.match(text):
            return LogLine(component, text, _seconds(found[1].replace(",", "."), form), None, text[found.end() :])
    return LogLine(component, text, 0, None, text)


def _ecs(text: str) -> dict[str, Any] | None:
    if not text.startswith("{"):
        return None
    try:
        document = json.loads(text)
    except ValueError:
        return None
    return dict(_flattened(document)) if "@timestamp" in document else None


def _flattened(document: Mapping[str, Any], begin: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in document.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{begin}{name}.")
        else:
            yield begin + name, value


def _seconds(stamp: str, form: str = "") -> float:
    try:
        at = datetime.strptime(stamp, form).replace(tzinfo=UTC) if form else datetime.fromisoformat(stamp)
        return at.timestamp()
    except (ValueError, OverflowError):
        # The text only looks like a time.
        return 0


def _details(fields: Mapping[str, Any]) -> Iterator[str]:
    """The fields besides the message: the error, the duration, the user and the trace among them."""
    for name in ("error.code", "error.type", "error.message"):
        if name in fields:
            yield str(fields[name])
    if isinstance(duration := fields.get("event.duration"), int | float):
        yield f"{duration / 1e6:.1f} ms"
    for name in _SHOWN_OF_A_REQUEST:
        if name in fields:
            yield f"{name}={fields[name]}"
    for name, value in fields.items():
        if not name.startswith(_OMITTED_FIELDS + _OF_A_REQUEST):
            yield f"{name}={value}"
    if "trace.id" in fields:
        yield f"trace={fields['trace.id']}"


def _printable(text: str) -> str:
    """The text without control characters, by which a client could control the reader's terminal."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
