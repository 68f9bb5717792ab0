"""Sends and receives the bytes of files: plain HTTP to the object store, by requests that the mesh has signed.

The standard library's client, in a few threads: bytes go from the disk to the socket and back, and are never held as a whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import BinaryIO, TypeVar
from urllib.parse import urlsplit

PARALLEL = 4
"""Transfers at a time: with more, a slow line only has more of them to begin again when it breaks."""

CHUNK_BYTES = 256 * 1024
_SECONDS = 60.0
"""Silence after which a connection counts as broken."""

_LONGEST_ANSWER = 4096

T = TypeVar("T")


class Interrupted(Exception):
    """The connection broke, or the store cannot answer now: the same may succeed at another time."""


class Refused(Exception):
    """The store's answer to a request, which stays the same however often it is sent. `status` is that of HTTP."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the object store answered {status}")
        self.status = status


class Changed(Exception):
    """The file was changed while it was read."""


@dataclass(frozen=True)
class Piece:
    """A part of a file of the disk, in bytes."""

    path: str
    first: int
    size: int


class Transfers:
    """To be closed, which ends what still runs."""

    def __init__(self, root_certificates: bytes | None = None) -> None:
        self._threads = ThreadPoolExecutor(PARALLEL, "storymesh-transfer")
        self._open: set[http.client.HTTPConnection] = set()
        self._root_certificates = root_certificates
        self._tls: ssl.SSLContext | None = None

    def close(self) -> None:
        self._break_off(set(self._open))
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def digest(self, path: str, *, first: int = 0, size: int | None = None) -> bytes:
        """SHA-256 of a file or of `size` bytes of it. Raises OSError, and Changed if it has fewer."""
        return await self._in_thread(partial(_digest, path, first, size), set())

    async def send(
        self,
        url: str,
        headers: Mapping[str, str],
        path: str,
        *,
        first: int,
        size: int,
        sent: Callable[[int], None],
    ) -> None:
        """PUT `size` bytes of the file, from `first` on. `sent` is told each number of bytes that left, from another thread.

        Raises Interrupted, Refused, Changed and OSError of the file.
        """
        mine: set[http.client.HTTPConnection] = set()
        piece = Piece(path, first, size)
        await self._in_thread(partial(self._send, url, headers, piece, sent=sent, mine=mine), mine)

    async def receive(
        self, url: str, headers: Mapping[str, str], file: BinaryIO, *, got: Callable[[int], None]
    ) -> None:
        """GET into `file` what it lacks: from its end on, or all of it from a store that knows no ranges.

        Raises Interrupted, Refused and OSError of the file.
        """
        mine: set[http.client.HTTPConnection] = set()
        await self._in_thread(partial(self._receive, url, headers, file, got=got, mine=mine), mine)

    async def _in_thread(self, work: Callable[[], T], connections: set[http.client.HTTPConnection]) -> T:
        """Waits for the thread's end also when it is cancelled, having broken its connection off: its file may be closed then."""
        running = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            running.cancel()
            while not running.done():
                self._break_off(connections)
                await asyncio.wait([running], timeout=0.1)
            with contextlib.suppress(BaseException):
                running.result()
            raise

    def _send(
        self,
        url: str,
        headers: Mapping[str, str],
        piece: Piece,
        *,
        sent: Callable[[int], None],
        mine: set[http.client.HTTPConnection],
    ) -> None:
        with open(piece.path, "rb") as file, self._connected(url, mine) as (connection, target):
            file.seek(piece.first)
            with _broken_means_interrupted():
                connection.putrequest("PUT", target, skip_accept_encoding=True)
                for name, value in headers.items():
                    if name.lower() != "content-length":
                        connection.putheader(name, value)
                connection.putheader("Content-Length", str(piece.size))
                connection.endheaders()
            for chunk in _chunks(file, piece.size):
                try:
                    with _broken_means_interrupted():
                        connection.send(chunk)
                except Interrupted:
                    # A store that refuses may answer, and close, before it has read everything.
                    self._answered(connection)
                    raise
                sent(len(chunk))
            self._answered(connection)

    def _answered(self, connection: http.client.HTTPConnection) -> None:
        with _broken_means_interrupted():
            answer = connection.getresponse()
            answer.read(_LONGEST_ANSWER)
        _check(answer.status, 200)

    def _receive(
        self,
        url: str,
        headers: Mapping[str, str],
        file: BinaryIO,
        *,
        got: Callable[[int], None],
        mine: set[http.client.HTTPConnection],
    ) -> None:
        have = file.seek(0, os.SEEK_END)
        asked = dict(headers) | ({"Range": f"bytes={have}-"} if have else {})
        with self._connected(url, mine) as (connection, target):
            with _broken_means_interrupted():
                connection.request("GET", target, headers=asked)
                answer = connection.getresponse()
            if answer.status != 206:
                _check(answer.status, 200)
                file.truncate(0)
                file.seek(0)
                got(-have)
            while True:
                with _broken_means_interrupted():
                    chunk = answer.read(CHUNK_BYTES)
                if not chunk:
                    return
                file.write(chunk)
                got(len(chunk))

    @contextlib.contextmanager
    def _connected(
        self, url: str, mine: set[http.client.HTTPConnection]
    ) -> Iterator[tuple[http.client.HTTPConnection, str]]:
        """A connection of its own for one request, and what to ask of it. Redirections are not followed."""
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        if parts.scheme == "https":
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, port, timeout=_SECONDS, context=self._context()
            )
        elif parts.scheme == "http":
            connection = http.client.HTTPConnection(host, port, timeout=_SECONDS)
        else:
            raise Refused(0)
        for known in (self._open, mine):
            known.add(connection)
        try:
            yield connection, f"{parts.path}?{parts.query}"
        finally:
            for known in (self._open, mine):
                known.discard(connection)
            connection.close()

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            extra = self._root_certificates.decode() if self._root_certificates else None
            self._tls = ssl.create_default_context(cadata=extra)
            if extra:
                # Those that the mesh is trusted by, beside the system's: the store may be somebody else's.
                self._tls.load_default_certs()
        return self._tls

    @staticmethod
    def _break_off(connections: set[http.client.HTTPConnection]) -> None:
        for connection in list(connections):
            if (opened := connection.sock) is not None:
                with contextlib.suppress(OSError):
                    opened.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def _broken_means_interrupted() -> Iterator[None]:
    """For what is done with a connection; the file's own errors are the caller's."""
    try:
        yield
    except ssl.SSLCertVerificationError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise Interrupted(type(error).__name__) from None


def _check(status: int, good: int) -> None:
    if status == good:
        return
    raise Interrupted(f"status {status}") if status >= 500 or status in (408, 429) else Refused(status)


def _digest(path: str, first: int, size: int | None) -> bytes:
    digest = sha256()
    with open(path, "rb") as file:
        file.seek(first)
        for chunk in _chunks(file, os.fstat(file.fileno()).st_size - first if size is None else size):
            digest.update(chunk)
    return digest.digest()


def _chunks(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Exactly `size` bytes from the present position on. Raises Changed if there are fewer."""
    left = size
    while left:
        chunk = file.read(min(left, CHUNK_BYTES))
        if not chunk:
            raise Changed("the file became shorter while it was read")
        left -= len(chunk)
        yield chunk
