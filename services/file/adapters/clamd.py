"""The virus scanner clamd, asked over its own protocol: INSTREAM, by TCP or a Unix socket.

It fails closed: what was not scanned to its end counts as not scanned, whatever the reason.
"""

from __future__ import annotations

import asyncio
import re
import struct
from collections.abc import AsyncIterator
from typing import Protocol

_COMMAND = b"zINSTREAM\0"
_LENGTH = struct.Struct("!I")
_CHUNK = 1 << 18
_FOUND = re.compile(r"stream: (?P<signature>.+) FOUND")


class ScannerUnavailable(Exception):
    """The scanner gave no verdict: it is away, busy, without signatures, or said something else. To be tried again."""


class ScanSizeExceeded(Exception):
    """The scanner takes no file of this size. Another try would end alike."""


class Scanner(Protocol):
    """Looks for viruses in a file."""

    async def scan(self, content: AsyncIterator[bytes], *, size: int) -> str | None:
        """The name of what was found in the content of so many bytes, or None.

        Raises ScannerUnavailable, ScanSizeExceeded and what `content` raises.
        """


class Clamd:
    """`address` is `tcp://host:port` or `unix:/path/of/the/socket`."""

    def __init__(self, address: str, *, most_bytes: int, silent_seconds: float = 60.0) -> None:
        """`most_bytes` is clamd's StreamMaxLength. `silent_seconds` bounds each wait for the scanner, not the whole scan."""
        self._address = address
        self._most_bytes = most_bytes
        self._silent_seconds = silent_seconds

    async def scan(self, content: AsyncIterator[bytes], *, size: int) -> str | None:
        if size > self._most_bytes:
            raise ScanSizeExceeded
        reader, writer = await self._connect()
        try:
            complete = await self._hand_over(content, writer)
            found = _verdict(await self._reply(reader))
            if found is None and not complete:
                raise ScannerUnavailable("clamd did not read to the end")
            return found
        finally:
            writer.transport.abort()

    async def check(self) -> None:
        """Whether it answers. Raises ScannerUnavailable."""
        reader, writer = await self._connect()
        try:
            if not await self._send(writer, b"zPING\0") or await self._reply(reader) != "PONG":
                raise ScannerUnavailable("clamd does not answer a PING")
        finally:
            writer.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        kind, _, rest = self._address.partition(":")
        host, _, port = rest.removeprefix("//").rpartition(":")
        try:
            async with asyncio.timeout(self._silent_seconds):
                if kind == "unix":
                    return await asyncio.open_unix_connection(rest)
                return await asyncio.open_connection(host.strip("[]"), int(port))
        except (OSError, TimeoutError) as error:
            raise ScannerUnavailable(f"clamd cannot be reached: {type(error).__name__}") from None

    async def _hand_over(self, content: AsyncIterator[bytes], writer: asyncio.StreamWriter) -> bool:
        """False when clamd stopped reading before the end."""
        if not await self._send(writer, _COMMAND):
            return False
        async for part in content:
            for start in range(0, len(part), _CHUNK):
                chunk = part[start : start + _CHUNK]
                if not await self._send(writer, _LENGTH.pack(len(chunk)) + chunk):
                    return False
        return await self._send(writer, _LENGTH.pack(0))

    async def _reply(self, reader: asyncio.StreamReader) -> str:
        try:
            async with asyncio.timeout(self._silent_seconds):
                reply = await reader.readuntil(b"\0")
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise ScannerUnavailable(f"clamd does not reply: {type(error).__name__}") from None
        return reply[:-1].decode(errors="replace")

    async def _send(self, writer: asyncio.StreamWriter, data: bytes) -> bool:
        """False when clamd reads no more, as when its own limit is exceeded: its reply may still be there to read."""
        try:
            async with asyncio.timeout(self._silent_seconds):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            return False
        except TimeoutError:
            raise ScannerUnavailable("clamd does not read") from None
        return True


def _verdict(reply: str) -> str | None:
    if reply == "stream: OK":
        return None
    if found := _FOUND.fullmatch(reply):
        return found["signature"]
    if "size limit exceeded" in reply:
        raise ScanSizeExceeded
    raise ScannerUnavailable("clamd gave no verdict")
