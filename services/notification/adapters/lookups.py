"""Looks up the addresses of names that people chose, whose DNS servers may never answer."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address, ip_address
from weakref import WeakValueDictionary

_THREADS = 32
"""Lookups at a time. A lookup cannot be ended: its thread is busy until the resolver gives up, long after nobody waits for it."""
_OF_ONE_OWNER = 2
"""Threads that names of one owner may occupy, so that nobody takes all of them."""

Address = IPv4Address | IPv6Address


class LookupsBusy(Exception):
    """No thread is free. Says nothing about the name."""


class Lookups:
    """Threads of its own, apart from the others of the process."""

    def __init__(self, *, threads: int = _THREADS, of_one_owner: int = _OF_ONE_OWNER) -> None:
        self._threads = threads
        self._of_one_owner = of_one_owner
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="webhook-lookup")
        self._busy = 0
        self._turns: WeakValueDictionary[Hashable, asyncio.Semaphore] = WeakValueDictionary()

    async def addresses(self, name: str, port: int, owner: Hashable) -> Sequence[Address]:
        """The addresses of a name. Waits for the owner's other lookups. Raises LookupsBusy, OSError and UnicodeError."""
        turn = self._turns.setdefault(owner, asyncio.Semaphore(self._of_one_owner))
        await turn.acquire()
        if self._busy >= self._threads:
            turn.release()
            raise LookupsBusy
        self._busy += 1
        looking = asyncio.get_running_loop().run_in_executor(self._executor, _addresses, name, port)

        def ended(future: asyncio.Future[Sequence[Address]]) -> None:
            self._busy -= 1
            turn.release()
            if not future.cancelled():
                future.exception()  # nobody may wait for it any more

        looking.add_done_callback(ended)
        # The thread goes on when its waiter gives up, and so does what it occupies.
        return await asyncio.shield(looking)


def _addresses(name: str, port: int) -> Sequence[Address]:
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(ip_address(place[0]) for *_, place in found))
