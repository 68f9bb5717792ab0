"""A virus scanner that speaks clamd's protocol over real sockets, and says what the test tells it to."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

EICAR = b"X5O!P%@AP[4\\PZX54(P^)7CC)7}$EICAR" + b"-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"


class Clamd:
    """Reads streams to their end, and finds EICAR in them."""

    def __init__(self) -> None:
        self.address = ""
        self.reply: bytes | None = None
        """Instead of the verdict, if it is set."""
        self.stream_max = 1 << 30
        self.streams: list[bytes] = []
        self.may_reply = asyncio.Event()
        self.may_reply.set()
        self.begun = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            command = await reader.readuntil(b"\0")
            reply = b"PONG" if command == b"zPING\0" else await self._scan(reader)
            writer.write((self.reply or reply) + b"\0")
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _scan(self, reader: asyncio.StreamReader) -> bytes:
        self.begun.set()
        content = b""
        while length := struct.unpack("!I", await reader.readexactly(4))[0]:
            content += await reader.readexactly(length)
            if len(content) > self.stream_max:
                return b"INSTREAM size limit exceeded. ERROR"
        self.streams.append(content)
        await self.may_reply.wait()
        return b"stream: Eicar-Test-Signature FOUND" if EICAR in content else b"stream: OK"


@asynccontextmanager
async def clamd(socket: Path | None = None) -> AsyncIterator[Clamd]:
    """Serve at a Unix socket, or at a port."""
    made = Clamd()
    if socket:
        server = await asyncio.start_unix_server(made.serve, socket)
        made.address = f"unix:{socket}"
    else:
        server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
        made.address = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield made
