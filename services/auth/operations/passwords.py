"""Hashes and verifies passwords with argon2id (RFC 9106), in processes of their own: no more than there are processors."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from time import perf_counter
from typing import Self

from argon2 import Type, extract_parameters
from argon2.exceptions import InvalidHashError

from kit.errors import DeadlineExceeded, Unavailable
from kit.rpc import deadline

from ..errors import Overloaded
from ..model.password_policy import normalized
from .hash_processes import HashProcess
from .hashing import RIGHT, hasher_of, job_of

log = logging.getLogger(__name__)

# Stored parameters beyond these are not ours. Obeying them would let whoever writes one row exhaust memory or processors.
_MOST_MEMORY_KIB = 64 * 1024
_MOST_PASSES = 10
_MOST_LANES = 16

_QUEUE_PER_PROCESS = 4
_RETRY_AFTER = timedelta(seconds=1)


class Passwords:
    """Waiting is bounded in number and time, so that a flood of sign-ins is refused early instead of slowing everything down.

    To be entered before the first password: that starts the processes, leaving ends them.
    """

    def __init__(self, *, memory_kib: int, passes: int, processes: int, wait_seconds: float) -> None:
        self._hasher = hasher_of(memory_kib, passes)
        self._processes = [HashProcess(memory_kib=memory_kib, passes=passes) for _ in range(processes or _processors())]
        self._wait_seconds = wait_seconds
        self._free: asyncio.Queue[HashProcess] = asyncio.Queue()
        self._jobs: set[asyncio.Task[bytes]] = set()
        self._places = self._admissions = 0
        self._nobodys = ""
        self._hash_seconds = 0.0

    async def __aenter__(self) -> Self:
        """Raises OSError when no process can be started. With some of them, it goes on."""
        try:
            await self._start()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Runs a block that is going to look at a password, if there can be a processor for it in time. Raises Overloaded.

        What is refused here has cost nothing yet: no more are let in than can wait for a processor, so that in a flood the database
        is there for others.
        """
        if self._admissions == 0:
            raise Overloaded(retry_after=_RETRY_AFTER)
        self._admissions -= 1
        try:
            yield
        finally:
            self._admissions += 1

    async def hash(self, password: str) -> str:
        """Raises Overloaded, Unavailable, or DeadlineExceeded when the call ends before a hash could."""
        return (await self._done(job_of(normalized(password)))).decode()

    async def verify(self, password: str, stored: str | None) -> bool:
        """Always costs one hash: None, the lack of an account, is checked against a hash that nobody has the password of.

        Raises as `hash` does.
        """
        usable = stored if stored and _is_acceptable(stored) else self._nobodys
        return await self._done(job_of(normalized(password), usable)) == RIGHT

    def is_outdated(self, stored: str) -> bool:
        """True when the hash was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(stored)

    async def _start(self) -> None:
        outcomes = await asyncio.gather(
            *(process.do(_of_nobody()) for process in self._processes), return_exceptions=True
        )
        for process, outcome in zip(self._processes, outcomes, strict=True):
            if isinstance(outcome, bytes):
                self._free.put_nowait(process)
            elif not isinstance(outcome, Unavailable):
                raise outcome
        processes = self._free.qsize()
        if processes == 0:
            raise OSError("no process that hashes passwords can be started; the log says why")
        if processes < len(self._processes):
            log.warning("only %d of %d processes that hash passwords could be started", processes, len(self._processes))
        self._places = _QUEUE_PER_PROCESS * processes
        self._admissions = processes + self._places
        # Once more, now that all are up.
        started = perf_counter()
        self._nobodys = (await self._done(_of_nobody())).decode()
        self._hash_seconds = perf_counter() - started

    async def _end(self) -> None:
        for job in self._jobs:
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        for process in self._processes:
            await process.end()

    async def _done(self, job: bytes) -> bytes:
        process = await self._acquire()
        left = deadline.remaining()
        if left is not None and left < self._hash_seconds:
            self._free.put_nowait(process)
            raise DeadlineExceeded
        doing = asyncio.create_task(process.do(job))
        self._jobs.add(doing)

        def release(_: object) -> None:
            self._jobs.discard(doing)
            self._free.put_nowait(process)

        doing.add_done_callback(release)
        # A cancelled call leaves its process at work: the place is free only when the process is.
        return await asyncio.shield(doing)

    async def _acquire(self) -> HashProcess:
        if self._places == 0:
            raise Overloaded(retry_after=_RETRY_AFTER)
        self._places -= 1
        try:
            async with asyncio.timeout(self._wait_seconds):
                return await self._free.get()
        except TimeoutError:
            raise Overloaded(retry_after=_RETRY_AFTER) from None
        finally:
            self._places += 1


def _of_nobody() -> bytes:
    return job_of(os.urandom(16).hex())


def _processors() -> int:
    """Those that this process may run on; macOS cannot say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_acceptable(stored: str) -> bool:
    try:
        parameters = extract_parameters(stored)
    except InvalidHashError:
        log.error("a stored password hash is unreadable; its account cannot sign in with a password")
        return False
    acceptable = (
        parameters.type is Type.ID
        and parameters.memory_cost <= _MOST_MEMORY_KIB
        and parameters.time_cost <= _MOST_PASSES
        and parameters.parallelism <= _MOST_LANES
    )
    if not acceptable:
        log.error("a stored password hash has parameters that this service never uses: %s", parameters)
    return acceptable
