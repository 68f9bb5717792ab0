"""Notices that a dependency stands still, once for all calls, instead of letting each of them wait for it in vain.

A server that is gone refuses connections, and calls fail at once. One that stands still, or whose network drops everything, takes
them and never answers: a statement that may lawfully take ten seconds cannot tell. So each process asks it something that takes no
time, on a connection that nothing else uses.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import monotonic

from kit.runtime.loops import every

log = logging.getLogger(__name__)

_EVERY_SECONDS = 0.5
_SILENT_SECONDS = 2.0
"""More than a busy machine takes for it, less than a caller would wait."""
_HELD_UP_SECONDS = 0.4
"""A wait that takes so much longer means that this process was held up or frozen: the answer may be there already."""


class DependencyAway(ConnectionError):
    """The dependency was silent when it was asked last, so nothing was tried."""

    def __init__(self, dependency: str) -> None:
        super().__init__(f"{dependency} does not answer")
        self.dependency = dependency


def hang_up(descriptor: int) -> None:
    """Shut a socket down as a broken network would: a call that waits on it gets an error, and its pool replaces the connection."""
    with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as shared:
        shared.shutdown(socket.SHUT_RDWR)


class Liveness:
    """Whether one dependency answers.

    Silence alone makes it away: an error is an answer, which callers get as fast by themselves. Without `watch` it never is.
    """

    def __init__(self, dependency: str, ask: Callable[[], Awaitable[object]], hang_up: Callable[[], None]) -> None:
        """`ask` must be answered in no time; `hang_up` ends every connection, so that calls which wait on one fail at once."""
        self._dependency = dependency
        self._ask = ask
        self._hang_up = hang_up
        self._away = False

    def require(self) -> None:
        """Raises DependencyAway while the dependency is silent."""
        if self._away:
            raise DependencyAway(self._dependency)

    async def watch(self, stopping: asyncio.Event) -> None:
        """Asks again and again until `stopping` is set."""
        failure = f"whether {self._dependency} answers cannot be told now"
        await every(_EVERY_SECONDS, stopping, self._look, failure=failure)

    async def _look(self) -> None:
        if not await self._is_silent() and self._away:
            self._away = False
            log.warning("%s answers again", self._dependency)

    async def _is_silent(self) -> bool:
        asking = asyncio.ensure_future(self._ask())
        try:
            held_up = True
            while held_up:
                begun = monotonic()
                done, _ = await asyncio.wait([asking], timeout=_SILENT_SECONDS)
                if done:
                    # What it says, also an error, is for those to judge who wanted something of it.
                    asking.exception()
                    return False
                held_up = monotonic() - begun > _SILENT_SECONDS + _HELD_UP_SECONDS
            if not self._away:
                # Before anybody who is woken now tries again.
                self._away = True
                log.error("%s stands still: what needs it is refused until it answers", self._dependency)
            self._hang_up()
            # To cancel it at once would have psycopg ask the silent server to cancel the statement, and wait for that.
            await asyncio.wait([asking], timeout=_HELD_UP_SECONDS)
            return True
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
