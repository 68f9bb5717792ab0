"""Hashes and verifies passwords with argon2id (RFC 9106) in a bounded thread pool, one thread per processor."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from time import perf_counter
from typing import Self, TypeVar

from argon2 import PasswordHasher, Type, extract_parameters
from argon2.exceptions import Argon2Error, InvalidHashError

from kit.errors import DeadlineExceeded, Unavailable
from kit.rpc import deadline

from ..errors import Overloaded
from ..model.password_policy import normalized

log = logging.getLogger(__name__)

# Stored parameters above these are refused. Obeying them would let anyone who can write a row exhaust memory or processors.
_MOST_MEMORY_KIB = 64 * 1024
_MOST_PASSES = 10
_MOST_LANES = 16

_QUEUE_PER_THREAD = 4
_RETRY_AFTER = timedelta(seconds=1)

_NICENESS = 5
"""How much nicer the hashing threads are than the process: more starves them beside busy neighbours, none delays the event loop
(decision 0037)."""

T = TypeVar("T")


class Passwords:
    """A thread pool for argon2, which releases the interpreter lock while it works.

    The queue is bounded in length and time (back-pressure), so that a flood of sign-ins is refused early instead of slowing all
    down. Enter it before the first password; leaving waits for the running hashes and ends the threads.
    """

    def __init__(self, *, memory_kib: int, passes: int, threads: int, wait_seconds: float) -> None:
        threads = threads or _processors()
        self._hasher = PasswordHasher(
            time_cost=passes, memory_cost=memory_kib, parallelism=1, hash_len=32, salt_len=16, type=Type.ID
        )
        self._wait_seconds = wait_seconds
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="argon2", initializer=_lower_priority)
        self._free = asyncio.Semaphore(threads)
        self._places = _QUEUE_PER_THREAD * threads
        self._admissions = threads + self._places
        self._dummy_hash = ""
        self._hash_seconds = 0.0

    async def __aenter__(self) -> Self:
        """Measure a hash, so that calls with too near a deadline can be refused. Raises Unavailable if no thread can be started."""
        self._dummy_hash = await self._done(self._hash_random_bytes)
        # Measured once more, because the first hash includes the start of its thread.
        started = perf_counter()
        await self._done(self._hash_random_bytes)
        self._hash_seconds = perf_counter() - started
        return self

    async def __aexit__(self, *_: object) -> None:
        # In another thread, because shutdown blocks until the running hashes, under a second each, are done.
        await asyncio.to_thread(self._executor.shutdown, cancel_futures=True)

    def require_place(self) -> None:
        """Raise Overloaded if no further block would be admitted now."""
        if self._admissions == 0:
            raise Overloaded(retry_after=_RETRY_AFTER)

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Admit a block that will check a password, if a thread can be free for it in time. Raises Overloaded.

        Refuses before any work is done: no more calls are admitted than can wait for a thread, so that a flood leaves the database
        free.
        """
        self.require_place()
        self._admissions -= 1
        try:
            yield
        finally:
            self._admissions += 1

    async def hash(self, password: str) -> str:
        """Hash a password. Raises Overloaded, Unavailable, or DeadlineExceeded if less time is left than a hash takes."""
        normal = normalized(password)
        return await self._done(lambda: self._hasher.hash(normal))

    async def verify(self, password: str, stored: str | None) -> bool:
        """Verify a password. Costs one hash even without a stored one, because it then checks against a hash of random bytes.

        Raises as `hash` does.
        """
        normal, usable = normalized(password), stored if stored and _is_acceptable(stored) else self._dummy_hash
        return await self._done(lambda: self._is_right(usable, normal))

    def is_outdated(self, stored: str) -> bool:
        """Whether the hash was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(stored)

    def _hash_random_bytes(self) -> str:
        return self._hasher.hash(os.urandom(16))

    def _is_right(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except (Argon2Error, InvalidHashError):
            return False

    async def _done(self, work: Callable[[], T]) -> T:
        await self._acquire()
        left = deadline.remaining()
        if left is not None and left < self._hash_seconds:
            self._free.release()
            raise DeadlineExceeded
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        try:
            self._executor.submit(self._work, work, done, loop)
        except RuntimeError as error:
            self._free.release()
            log.error("no thread can be had for a password: %s", error)
            raise Unavailable from None
        return await done

    def _work(self, work: Callable[[], T], done: asyncio.Future[T], loop: asyncio.AbstractEventLoop) -> None:
        """Does the work in a thread, and tells the loop in one step.

        What a thread does besides hashing holds up the loop: it has the interpreter lock, and at its low priority it may be
        interrupted with it.
        """
        try:
            tell = partial(done.set_result, work())
        except Exception as error:
            tell = partial(done.set_exception, error)
        loop.call_soon_threadsafe(self._worked, done, tell)

    def _worked(self, done: asyncio.Future[T], tell: Callable[[], None]) -> None:
        # Also when the call was cancelled, as its thread worked on.
        self._free.release()
        if not done.cancelled():
            tell()

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


def _lower_priority() -> None:
    """Lower the thread's priority, so that the event loop goes first. Only Linux has priorities per thread."""
    if sys.platform == "linux":
        # Some sandboxes do not allow it.
        with contextlib.suppress(OSError):
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS)


def _processors() -> int:
    """The number of processors that this process may use; on macOS, which cannot tell, of all."""
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
