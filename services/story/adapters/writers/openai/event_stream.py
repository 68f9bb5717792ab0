"""A decoder of server-sent events (WHATWG HTML, 9.2.6), independent of how the bytes are split.

The openai package's own decoder fails on a frame without data, such as a keep-alive, on a byte order mark and on bytes that are
not UTF-8.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

DONE = "[DONE]"
"""The data of an endpoint's last event."""

_LINE_END = re.compile(rb"\r\n|\r|\n")
_MOST_BYTES = 4_000_000


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """An event with data; `name` is empty unless the endpoint gave it one."""

    name: str
    data: str


class EventDecoder:
    """Decodes events: call `feed` with bytes, then `finish`. Events without data are legal and are left out.

    A last event without the closing empty line counts, because some endpoints omit that line.
    """

    def __init__(self) -> None:
        self._line = bytearray()
        self._ended_with_cr = False
        self._is_first_line = True
        self._name = ""
        self._data: list[str] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[ServerSentEvent]:
        """Return the events that the bytes complete. Raises ValueError for an event beyond the size limit."""
        if self._ended_with_cr and chunk:
            chunk = chunk.removeprefix(b"\n")
            self._ended_with_cr = False
        if not chunk:
            return
        self._ended_with_cr = chunk.endswith(b"\r")
        first, *others = _LINE_END.split(chunk)
        self._line += first
        for start in others:
            yield from self._take(self._next_line())
            self._line += start
        if self._size + len(self._line) > _MOST_BYTES:
            raise ValueError("an event is endless")

    def finish(self) -> Iterator[ServerSentEvent]:
        yield from self._take(self._next_line())
        yield from self._dispatch()

    def _next_line(self) -> str:
        line = self._line.decode(errors="replace")
        self._line.clear()
        if self._is_first_line:
            self._is_first_line = False
            line = line.removeprefix("\ufeff")
        return line

    def _take(self, line: str) -> Iterator[ServerSentEvent]:
        if not line:
            yield from self._dispatch()
            return
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            self._name = value
        elif field == "data":
            if value.strip() == DONE:
                # Some endpoints omit the empty line before it.
                yield from self._dispatch()
                value = DONE
            self._data.append(value)
            self._size += len(value)
            if value == DONE:
                yield from self._dispatch()

    def _dispatch(self) -> Iterator[ServerSentEvent]:
        event = ServerSentEvent(self._name, "\n".join(self._data))
        self._name, self._data, self._size = "", [], 0
        if event.data.strip():
            yield event
