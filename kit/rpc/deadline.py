"""The time that is left for the call being served, handed on to the calls that it makes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from types import TracebackType

from kit.errors import DeadlineExceeded

_KEEP_SECONDS = 0.02
"""Kept back, so that our own DEADLINE_EXCEEDED still reaches the caller."""

_KEEP_SHARE = 0.5
"""Kept back at most, because a call that needs 2 ms can be answered within 10. Work of known length refuses itself (hashing)."""

_KEEP_OF_STREAM_SECONDS = 0.5

_ends_at: ContextVar[float | None] = ContextVar("deadline", default=None)


class within:  # noqa: N801  # reads as a function does; a generator would take longer than all that happens here
    """Bounds the block by the caller's deadline and by `longest`, in seconds.

    Raises DeadlineExceeded when nothing is left, TimeoutError when the time runs out.
    """

    __slots__ = ("_seconds", "_timeout", "_token")

    def __init__(self, remaining: float | None, longest: float) -> None:
        if remaining is not None and remaining <= 0:
            raise DeadlineExceeded
        self._seconds = longest if remaining is None else min(remaining - _kept(remaining), longest)

    async def __aenter__(self) -> None:
        ends_at = asyncio.get_running_loop().time() + self._seconds
        self._token = _ends_at.set(ends_at)
        self._timeout = asyncio.timeout_at(ends_at)
        await self._timeout.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _ends_at.reset(self._token)
        await self._timeout.__aexit__(kind, error, traceback)


@asynccontextmanager
async def of_stream(remaining: float | None) -> AsyncIterator[None]:
    """Ends the block, which serves a stream, a tenth of its time, and at most half a second, before the caller's deadline.

    A proxy that enforces the deadline resets a stream that has begun, and its caller reads INTERNAL: our own status comes first.
    Raises TimeoutError when the time runs out.
    """
    async with asyncio.timeout(None if remaining is None else remaining - min(_KEEP_OF_STREAM_SECONDS, remaining / 10)):
        yield


def remaining() -> float | None:
    """Seconds left for the call being served; None outside a call or in a stream."""
    ends_at = _ends_at.get()
    return None if ends_at is None else max(ends_at - asyncio.get_running_loop().time(), 0.0)


def _kept(seconds: float) -> float:
    return min(_KEEP_SECONDS, seconds * _KEEP_SHARE)
