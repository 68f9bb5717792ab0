"""Answers that go out at a beat, so that the time they take does not tell what was found."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from time import perf_counter
from typing import TypeVar

T = TypeVar("T")


class Pace:
    """Rounds the time to an answer up to a multiple of the beat.

    The same statements run for addresses with and without an account, but one that is there has a row to be read and locked. These
    tenths of a millisecond showed to who measured; the beat, longer than such work takes altogether, hides them. A random delay
    would only make them harder to see.
    """

    def __init__(self, beat_seconds: float) -> None:
        self._beat_seconds = beat_seconds

    async def keep(self, work: Awaitable[T]) -> T:
        """The outcome of the work, an error too, at the next beat counted from now. A cancelled call ends at once."""
        started = perf_counter()
        try:
            outcome = await work
        except Exception:
            await self._beat(started)
            raise
        await self._beat(started)
        return outcome

    async def _beat(self, started: float) -> None:
        if self._beat_seconds:
            await asyncio.sleep(self._beat_seconds - (perf_counter() - started) % self._beat_seconds)
