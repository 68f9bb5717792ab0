"""Padding of response times against timing attacks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from time import perf_counter
from typing import TypeVar

T = TypeVar("T")


class ResponsePadding:
    """Pads response time to a multiple of 50 ms (`beat_seconds`; 0: not at all) against timing attacks.

    The same statements run for addresses with and without an account, but reading and locking an existing row takes some tenths of
    a millisecond more. The multiple is longer than all such work and hides it. A random delay would only need more measurements.
    """

    def __init__(self, beat_seconds: float) -> None:
        self._beat_seconds = beat_seconds

    async def padded(self, work: Awaitable[T]) -> T:
        """Return the outcome of the work, or raise its error, at the next multiple from now. A cancelled call ends at once."""
        started = perf_counter()
        try:
            outcome = await work
        except Exception:
            await self._pad(started)
            raise
        await self._pad(started)
        return outcome

    async def _pad(self, started: float) -> None:
        if self._beat_seconds:
            await asyncio.sleep(self._beat_seconds - (perf_counter() - started) % self._beat_seconds)
