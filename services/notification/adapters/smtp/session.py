"""Commands and replies on an open connection. Several commands may be under way at a time (PIPELINING, RFC 2920).

The library opens connections: it connects, encrypts and logs in. It waits for the reply to each command before the next one, by
several tasks and timers each, which cost more than the rest of a mail's way to the server.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import cast

_LONGEST_REPLY = 64 * 1024


class NoReply(OSError):
    """The server hung up, or said what is no reply."""


@dataclass(frozen=True, slots=True)
class Reply:
    code: int
    text: str
    """Of its lines, without their codes; bytes that are no UTF-8 as surrogates."""

    @property
    def consents(self) -> bool:
        return self.code // 100 == 2


class Session(asyncio.Protocol):
    """Takes a connection over from the protocol that opened it."""

    def __init__(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._buffer = bytearray()
        self._lines: list[bytes] = []
        self._replies: deque[Reply] = deque()
        self._broken: NoReply | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._transport.set_protocol(self)

    @property
    def is_open(self) -> bool:
        """Whether the server is there, and has said nothing unasked, such as that it is about to hang up."""
        return not (self.is_closed or self._replies or self._buffer or self._lines)

    @property
    def is_closed(self) -> bool:
        """Whether no further reply can come."""
        return bool(self._broken or self._transport.is_closing())

    def write(self, commands: bytes) -> None:
        """Raises NoReply if the connection is closed."""
        if self._broken or self._transport.is_closing():
            raise self._broken or NoReply("hung up")
        self._transport.write(commands)

    async def reply(self) -> Reply:
        """The reply to the first command that has none yet. Raises NoReply."""
        while not self._replies:
            if self._broken:
                raise self._broken
            self._waiting = asyncio.get_running_loop().create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None
        return self._replies.popleft()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = bytearray(rest)
        for line in lines:
            self._line(bytes(line).rstrip(b"\r"))
        if len(self._buffer) + sum(map(len, self._lines)) > _LONGEST_REPLY:
            self._break("its reply has no end")
        self._wake()

    def eof_received(self) -> bool:
        self._break("hung up")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._break(str(exc) if exc else "hung up")

    def _line(self, line: bytes) -> None:
        code, separator = line[:3], line[3:4]
        if not (code.isdigit() and len(code) == 3 and separator in (b"", b" ", b"-")):
            self._break("no valid reply")
            return
        self._lines.append(line[4:].strip(b" \t"))
        if separator != b"-":
            text = b"\n".join(self._lines).decode("utf-8", "surrogateescape")
            self._lines.clear()
            self._replies.append(Reply(int(code), text))

    def _break(self, why: str) -> None:
        self._broken = self._broken or NoReply(why)
        self._wake()

    def _wake(self) -> None:
        if self._waiting and not self._waiting.done() and (self._replies or self._broken):
            self._waiting.set_result(None)
