"""One line of a component's log: when it was written, to which trace it belongs, and how a person or a program reads it.

Services and Envoy write ECS JSON, the other servers text with the time in front. All of them write UTC.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

_TEXT_TIMES = (
    # Postgres, the mail sink and the supervisor; then Redis.
    (re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[.,]\d{3}) UTC "), "%Y-%m-%d %H:%M:%S.%f"),
    (re.compile(r"\d+:[A-Z] (\d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d\.\d{3}) "), "%d %b %Y %H:%M:%S.%f"),
)
_TRACE_ID = re.compile(r"([0-9a-f]{2}-)?(?P<id>[0-9a-f]{32})(?(1)-[0-9a-f]{16}-[0-9a-f]{2})", re.IGNORECASE)
_SAID_ALREADY = ("@timestamp", "message", "log.", "ecs.", "process.", "service.", "span.", "trace.", "event.")
"""Fields that a readable line leaves out, or shows in a form of its own."""
_SHOWN_OF_A_REQUEST = ("client.ip", "user.id")
_OF_A_REQUEST = ("http.", "url.", "rpc.", "client.", "user.", "user_agent.", "envoy.", "error.")
_STACK_TRACE = "error.stack_trace"


@dataclass(frozen=True)
class LogLine:
    """A line as it stands in the log of `component`, without its end."""

    component: str
    text: str
    at: float
    """Seconds since the epoch: the line's own, or that of the line before where it has none."""

    fields: Mapping[str, Any] | None
    """The flattened fields of an ECS line; None for text."""

    message: str
    """What it says, without the time in front."""

    def raw(self) -> str:
        """JSON: the line itself where it is JSON, otherwise an ECS object around its text."""
        if self.fields is not None:
            return self.text
        at = datetime.fromtimestamp(self.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return json.dumps({"@timestamp": at, "message": self.text, "service": {"name": self.component}})

    def readable(self, width: int) -> str:
        """Local time, component padded to `width`, level, message and what else is known. A stack trace follows indented."""
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
    """Read lines that follow one another in a log.

    A line without a time shares that of the line before it. At the beginning that is `before`, or the first time that is found, or
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
    """The trace id in lower case, from 32 hexadecimal digits or a whole `traceparent`; None where the text is neither."""
    found = _TRACE_ID.fullmatch(text.strip())
    return found["id"].lower() if found else None


def _read(component: str, text: str) -> LogLine:
    """The line with its own time; 0 where it has none."""
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
        # Something else that looks like a time.
        return 0


def _details(fields: Mapping[str, Any]) -> Iterator[str]:
    """What the message does not say: why it failed, how long it took, for whom, and its trace."""
    for name in ("error.code", "error.type", "error.message"):
        if name in fields:
            yield str(fields[name])
    if isinstance(duration := fields.get("event.duration"), int | float):
        yield f"{duration / 1e6:.1f} ms"
    for name in _SHOWN_OF_A_REQUEST:
        if name in fields:
            yield f"{name}={fields[name]}"
    for name, value in fields.items():
        if not name.startswith(_SAID_ALREADY + _OF_A_REQUEST):
            yield f"{name}={value}"
    if "trace.id" in fields:
        yield f"trace={fields['trace.id']}"


def _printable(text: str) -> str:
    """The text without control characters, by which a client could write to the reader's terminal."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
