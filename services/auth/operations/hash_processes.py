"""The processes that passwords are hashed in, seen from the one that serves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import Self

from kit.errors import Unavailable

from . import hashing

log = logging.getLogger(__name__)

_ATTEMPTS = 2

# All of it. With huge pages argon2, which reads its memory all over, is a twentieth faster with glibc; others ignore this.
_ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


class HashProcess:
    """One process that hashes, for one caller at a time. When it has ended, the next job starts another."""

    def __init__(self, *, memory_kib: int, passes: int) -> None:
        self._parameters = str(memory_kib), str(passes)
        self._running: _Running | None = None

    async def do(self, job: bytes) -> bytes:
        """The answer to a job of `hashing`. To be run to its end: given up half-way, the next caller would get its answer.

        Raises Unavailable.
        """
        for _ in range(_ATTEMPTS):
            try:
                self._running = self._running or await _Running.start(self._parameters)
                return await self._running.answer(job)
            except (OSError, EOFError) as error:
                code = await self.end()
                what = f"cannot be started: {error}" if code is None else f"ended with exit code {code}"
                log.error("a process that hashes passwords %s", what)
        raise Unavailable

    async def end(self) -> int | None:
        """Its exit code; None when there is none."""
        if self._running is None:
            return None
        running, self._running = self._running, None
        return await running.end()


@dataclass(frozen=True)
class _Running:
    process: subprocess.Popen[bytes]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def start(cls, parameters: tuple[str, str]) -> Self:
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            try:
                process = _spawn(parameters, theirs)
            except OSError:
                writer.close()
                raise
        return cls(process, reader, writer)

    async def answer(self, job: bytes) -> bytes:
        self.writer.write(hashing.framed(job))
        (length,) = hashing.LENGTH.unpack(await self.reader.readexactly(hashing.LENGTH.size))
        return await self.reader.readexactly(length)

    async def end(self) -> int:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()
        return _ended(self.process)


def _spawn(parameters: tuple[str, str], theirs: socket.socket) -> subprocess.Popen[bytes]:
    """Takes a millisecond. Not left to the event loop: uvloop forks, where this does vfork, which runs no handlers of gRPC's."""
    # By its path and isolated: it needs nothing of the environment, and that may hold secrets.
    command = [sys.executable, "-I", hashing.__file__, *parameters]
    return subprocess.Popen(  # noqa: S603, nothing in the command comes from outside
        command, stdin=theirs.fileno(), stdout=theirs.fileno(), env=_ENVIRONMENT
    )


def _ended(process: subprocess.Popen[bytes]) -> int:
    """Killed if need be: it has nothing to lose."""
    process.kill()
    return process.wait()
