"""The way between a client and the object store, on which a test cuts, delays and spoils what passes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class StoreWay:
    """Passes connections on to the store. What a test sets holds for the connections that begin afterwards."""

    store: str
    endpoint: str = ""
    is_open: bool = True
    cuts: list[int] = field(default_factory=list)
    """After how many bytes towards the store the next connections break, one each."""

    lost_answers: int = 0
    """How many of the next connections break when the store answers."""

    spoil: Callable[[bytes], bytes] = bytes
    """What becomes of the bytes that the store sends."""

    before: Callable[[], None] = lambda: None
    """Called when a connection begins."""

    sent: int = 0
    received: int = 0
    open_now: int = 0
    most: int = 0
    """The most connections at a time."""

    async def pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.before()
        if not self.is_open:
            writer.transport.abort()
            return
        limit = self.cuts.pop(0) if self.cuts else None
        deaf = self.lost_answers > 0
        self.lost_answers -= deaf
        self.open_now += 1
        self.most = max(self.most, self.open_now)
        address = urlsplit(self.store)
        from_store, to_store = await asyncio.open_connection(address.hostname, address.port)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._there(reader, to_store, limit))
                group.create_task(self._back(from_store, writer, deaf=deaf))
        except* OSError:
            pass
        finally:
            self.open_now -= 1
            for each in (writer, to_store):
                each.transport.abort()

    async def _there(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, limit: int | None) -> None:
        passed = 0
        while data := await source.read(1 << 16):
            passed += len(data)
            self.sent += len(data)
            if (limit is not None and passed > limit) or not self.is_open:
                raise ConnectionAbortedError
            target.write(data)
            await target.drain()
        raise ConnectionAbortedError

    async def _back(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, deaf: bool) -> None:
        while data := await source.read(1 << 16):
            if deaf or not self.is_open:
                raise ConnectionAbortedError
            self.received += len(data)
            target.write(self.spoil(data))
            await target.drain()
        with suppress(OSError):
            target.write_eof()


@asynccontextmanager
async def way_to(store: str) -> AsyncIterator[StoreWay]:
    way = StoreWay(store)
    async with await asyncio.start_server(way.pass_on, "127.0.0.1", 0) as server:
        way.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield way
        way.is_open = False
