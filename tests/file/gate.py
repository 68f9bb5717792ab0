"""The way to the object store, which a test can close: then nobody answers at the store's address."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit


class Gate:
    """Passes connections on to the store while it is open."""

    def __init__(self, endpoint: str) -> None:
        address = urlsplit(endpoint)
        self._host, self._port = address.hostname or "", address.port or 80
        self._server: asyncio.Server
        self._writers: set[asyncio.StreamWriter] = set()
        self._passing: set[asyncio.Task[None]] = set()
        self.is_open = True
        self.silent = False
        """Connections are taken, and nothing is passed on: the store stands still."""
        self.endpoint = ""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        self.endpoint = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def close(self) -> None:
        """Cut what is open, and every connection that comes."""
        self.is_open = False
        for writer in self._writers:
            writer.transport.abort()

    def open(self) -> None:
        self.is_open, self.silent = True, False

    async def stop(self) -> None:
        self.close()
        self._server.close()
        await asyncio.gather(*self._passing, return_exceptions=True)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.is_open:
            writer.transport.abort()
            return
        to_reader, to_writer = await asyncio.open_connection(self._host, self._port)
        self._writers |= {writer, to_writer}
        for source, target in ((reader, to_writer), (to_reader, writer)):
            task = asyncio.create_task(self._copy(source, target))
            self._passing.add(task)
            task.add_done_callback(self._passing.discard)

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(1 << 16):
                if not self.silent:
                    target.write(data)
                    await target.drain()
        target.transport.abort()


@asynccontextmanager
async def gate_to(endpoint: str) -> AsyncIterator[Gate]:
    gate = Gate(endpoint)
    await gate.start()
    try:
        yield gate
    finally:
        await gate.stop()
