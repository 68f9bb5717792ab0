"""Hashes and verifies passwords with argon2id (RFC 9106), off the event loop and never more at a time than there are processors."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from time import perf_counter
from typing import TypeVar

from argon2 import PasswordHasher, Type, extract_parameters
from argon2.exceptions import Argon2Error, InvalidHashError

from services.kit import deadline
from services.kit.errors import DeadlineExceeded

from .errors import Overloaded
from .password_policy import normalized

log = logging.getLogger(__name__)

# Stored parameters beyond these are not ours. Obeying them would let whoever writes one row exhaust memory or processors.
_MOST_MEMORY_KIB = 64 * 1024
_MOST_PASSES = 10
_MOST_LANES = 16

_QUEUE_PER_PROCESSOR = 4
_NICENESS = 10
_RETRY_AFTER = timedelta(seconds=1)

R = TypeVar("R")


class Passwords:
    """Waiting is bounded in number and time, so that a flood of sign-ins is refused early instead of slowing everything down."""

    def __init__(self, *, memory_kib: int, passes: int, threads: int, wait_seconds: float) -> None:
        threads = threads or _processors()
        self._hasher = PasswordHasher(
            time_cost=passes, memory_cost=memory_kib, parallelism=1, hash_len=32, salt_len=16, type=Type.ID
        )
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="argon2", initializer=_step_back)
        self._free = asyncio.Semaphore(threads)
        self._places = _QUEUE_PER_PROCESSOR * threads
        self._admissions = threads + self._places
        self._wait_seconds = wait_seconds
        started = perf_counter()
        self._nobodys = self._hasher.hash(os.urandom(16))
        self._hash_seconds = perf_counter() - started

    def close(self) -> None:
        self._executor.shutdown()

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
        """Raises Overloaded, or DeadlineExceeded when the call ends before a hash could."""
        return await self._off_loop(lambda: self._hasher.hash(normalized(password)))

    async def verify(self, password: str, stored: str | None) -> bool:
        """Always costs one hash: None, the lack of an account, is checked against a hash that nobody has the password of."""
        usable = stored if stored and _is_acceptable(stored) else self._nobodys
        return await self._off_loop(lambda: self._matches(usable, normalized(password)))

    def is_outdated(self, stored: str) -> bool:
        """True when the hash was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(stored)

    def _matches(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except (Argon2Error, InvalidHashError):
            return False

    async def _off_loop(self, work: Callable[[], R]) -> R:
        await self._acquire()
        left = deadline.remaining()
        if left is not None and left < self._hash_seconds:
            self._free.release()
            raise DeadlineExceeded
        loop = asyncio.get_running_loop()
        job = self._executor.submit(work)
        # A cancelled call leaves its thread at work: the place is free only when the thread is.
        job.add_done_callback(lambda _: loop.call_soon_threadsafe(self._free.release))
        return await asyncio.wrap_future(job)

    async def _acquire(self) -> None:
        if self._places == 0:
            raise Overloaded(retry_after=_RETRY_AFTER)
        self._places -= 1
        try:
            async with asyncio.timeout(self._wait_seconds):
                await self._free.acquire()
        except TimeoutError:
            raise Overloaded(retry_after=_RETRY_AFTER) from None
        finally:
            self._places += 1


def _step_back() -> None:
    """Lets a hashing thread have what the event loop leaves, so that a flood of sign-ins does not hold other calls up.

    Only Linux has a niceness for each thread; elsewhere it would be the whole process's.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


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
