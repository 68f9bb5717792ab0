"""HTTP/1.1 clients, which run in a process of their own so that their processor time is not that of the servers."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle

import uvloop

_HEAD_END = b"\r\n\r\n"
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_DEADLINE_SECONDS = 30.0


@dataclass
class Seen:
    """Results of all connections in the measured time."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    """Of each answer, in seconds."""
    statuses: Counter[int] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds


def get(path: str, token: str = "") -> bytes:
    """A GET request, as it goes over the wire."""
    return _head("GET", path, token) + b"\r\n"


def post(path: str, body: bytes, token: str) -> bytes:
    """A POST request with a JSON body, as it goes over the wire."""
    described = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return _head("POST", path, token) + described.encode() + body


def _head(method: str, path: str, token: str) -> bytes:
    authorization = f"authorization: Bearer {token}\r\n" if token else ""
    return f"{method} {path} HTTP/1.1\r\nhost: storymesh.localhost\r\nuser-agent: bench\r\n{authorization}".encode()


def closed_loop(port: int, requests: Sequence[bytes], connections: int, seconds: float) -> Seen:
    """Sends the requests in turns over connections that each wait for an answer before their next request."""
    return uvloop.run(_closed_loop(port, requests, connections, seconds))


async def _closed_loop(port: int, requests: Sequence[bytes], connections: int, seconds: float) -> Seen:
    seen, turns = Seen(), cycle(requests)
    streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(connections)]
    began = time.perf_counter()
    try:
        async with asyncio.timeout(seconds + _DEADLINE_SECONDS):
            await asyncio.gather(*(_connection(*stream, turns, began + seconds, seen) for stream in streams))
    finally:
        for _, writer in streams:
            writer.close()
    seen.seconds = time.perf_counter() - began
    return seen


async def _connection(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, turns: Iterator[bytes], ends: float, seen: Seen
) -> None:
    while (sent_at := time.perf_counter()) < ends:
        writer.write(next(turns))
        head = await reader.readuntil(_HEAD_END)
        length = _CONTENT_LENGTH.search(head)
        if length is None:
            raise ValueError(f"an answer without content-length: {head[:80]!r}")
        await reader.readexactly(int(length[1]))
        seen.latencies.append(time.perf_counter() - sent_at)
        seen.statuses[int(head[9:12])] += 1
