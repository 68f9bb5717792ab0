"""Hashes and verifies passwords with argon2id (RFC 9106), in threads: no more at a time than there are processors."""

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
from time import perf_counter
from typing import Self, TypeVar

from argon2 import PasswordHasher, Type, extract_parameters
from argon2.exceptions import Argon2Error, InvalidHashError

from kit.errors import DeadlineExceeded, Unavailable
from kit.rpc import deadline

from ..errors import Overloaded
from ..model.password_policy import normalized

log = logging.getLogger(__name__)

# Stored parameters beyond these are not ours. Obeying them would let whoever writes one row exhaust memory or processors.
_MOST_MEMORY_KIB = 64 * 1024
_MOST_PASSES = 10
_MOST_LANES = 16

_QUEUE_PER_THREAD = 4
_RETRY_AFTER = timedelta(seconds=1)

_NICENESS = 5
"""Of the threads that hash. Lower priorities starve beside busy neighbours, and equal ones delay the event loop (decision 0037)."""

T = TypeVar("T")


class Passwords:
    """A pool of threads for argon2, which holds no interpreter lock while it works.

    Waiting is bounded in number and time, so that a flood of sign-ins is refused early instead of slowing everything down.
    To be entered before the first password; leaving waits for the hashes at work and ends the threads.
    """

    def __init__(self, *, memory_kib: int, passes: int, threads: int, wait_seconds: float) -> None:
        threads = threads or _processors()
        self._hasher = PasswordHasher(
            time_cost=passes, memory_cost=memory_kib, parallelism=1, hash_len=32, salt_len=16, type=Type.ID
        )
        self._wait_seconds = wait_seconds
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="argon2", initializer=_step_back)
        self._free = asyncio.Semaphore(threads)
        self._places = _QUEUE_PER_THREAD * threads
        self._admissions = threads + self._places
        self._nobodys = ""
        self._hash_seconds = 0.0

    async def __aenter__(self) -> Self:
        """Measures a hash, which tells what deadline is too near for one. Raises Unavailable when there can be no thread."""
        self._nobodys = await self._done(self._of_nobody)
        # Once more, now that a thread is up.
        started = perf_counter()
        await self._done(self._of_nobody)
        self._hash_seconds = perf_counter() - started
        return self

    async def __aexit__(self, *_: object) -> None:
        # In another thread, because it waits; a hash cannot be interrupted, but none takes a second.
        await asyncio.to_thread(self._executor.shutdown, cancel_futures=True)

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Runs a block that is going to look at a password, if there can be a thread for it in time. Raises Overloaded.

        What is refused here has cost nothing yet: no more are let in than can wait for a thread, so that in a flood the database
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
        normal = normalized(password)
        return await self._done(lambda: self._hasher.hash(normal))

    async def verify(self, password: str, stored: str | None) -> bool:
        """Always costs one hash: None, the lack of an account, is checked against a hash that nobody has the password of.

        Raises as `hash` does.
        """
        normal, usable = normalized(password), stored if stored and _is_acceptable(stored) else self._nobodys
        return await self._done(lambda: self._is_right(usable, normal))

    def is_outdated(self, stored: str) -> bool:
        """True when the hash was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(stored)

    def _of_nobody(self) -> str:
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
        try:
            hashing = self._executor.submit(work)
        except RuntimeError as error:
            self._free.release()
            log.error("no thread can be had for a password: %s", error)
            raise Unavailable from None
        loop = asyncio.get_running_loop()
        # A cancelled call leaves its thread at work, which is free only when the hash is done.
        hashing.add_done_callback(lambda _: loop.call_soon_threadsafe(self._free.release))
        return await asyncio.wrap_future(hashing)

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
    """Lets the event loop go first. Linux alone has priorities of threads."""
    if sys.platform == "linux":
        # Not every sandbox allows it.
        with contextlib.suppress(OSError):
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
