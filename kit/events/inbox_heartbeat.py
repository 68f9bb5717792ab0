"""Renews the leases of what a process is working on, from a thread of its own.

On the event loop a renewal would wait behind the very work that it vouches for: on a busy machine, or while something holds the
loop up, a worker that lives would lose its lease.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from time import monotonic

from .inbox_stream import InboxEntry, InboxStream

log = logging.getLogger(__name__)

_PATIENCE_LEASES = 4
"""How long a loop may show no sign of life until it counts as hung: nobody else would ever take its entries over."""


class LeaseHeartbeat:
    """Of one consumer. It stops when the process does, whatever stops it, and when the event loop does not move for long."""

    def __init__(self, stream: InboxStream, *, lease_seconds: float, lost: Callable[[InboxEntry], None]) -> None:
        """`lost` is called on the event loop for an entry that another worker has taken over."""
        self._stream = stream
        self._lease_seconds = lease_seconds
        self._lost = lost
        self._kept: dict[bytes, InboxEntry] = {}
        self._stopped = threading.Event()
        self._alive_at = monotonic()

    @contextmanager
    def keeping(self, entry: InboxEntry) -> Iterator[None]:
        """Keeps the lease of the entry during the block."""
        self.keep(entry)
        try:
            yield
        finally:
            self.let_go(entry)

    def keep(self, entry: InboxEntry) -> None:
        """Keeps the lease of the entry until it is let go."""
        self._kept[entry.id] = entry

    def let_go(self, entry: InboxEntry) -> None:
        self._kept.pop(entry.id, None)

    def keeps(self, entry: InboxEntry) -> bool:
        """Whether the entry is kept: not let go, and not lost to another worker."""
        return entry.id in self._kept

    @asynccontextmanager
    async def beating(self) -> AsyncIterator[None]:
        """Beats during the block."""
        loop = asyncio.get_running_loop()
        self._sign_of_life()
        thread = threading.Thread(target=lambda: asyncio.run(self._beat(loop)), name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            await asyncio.to_thread(thread.join)

    async def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        """On a loop of the thread's own, which has nothing else to do and so may stand still between two beats."""
        async with self._stream.apart() as stream:
            while not self._stopped.wait(self._lease_seconds / 3):
                silent_for = monotonic() - self._alive_at
                loop.call_soon_threadsafe(self._sign_of_life)
                if silent_for > _PATIENCE_LEASES * self._lease_seconds:
                    log.error("the event loop has not moved for %.1f s: its leases are not renewed", silent_for)
                    continue
                await self._renew(stream, loop)

    async def _renew(self, stream: InboxStream, loop: asyncio.AbstractEventLoop) -> None:
        # A copy, for entries come and go meanwhile.
        entries = list(self._kept.values())
        if not entries:
            return
        try:
            lost = await stream.keep(entries)
        except Exception as error:
            # Whatever it is: a thread that ends would let every lease go, unnoticed.
            log.warning("leases cannot be renewed now: %s", error)
            return
        for entry in entries:
            if entry.id in lost and self._kept.pop(entry.id, None) is not None:
                loop.call_soon_threadsafe(self._lost, entry)

    def _sign_of_life(self) -> None:
        self._alive_at = monotonic()
