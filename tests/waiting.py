"""Waits for an effect of another task or process, without assuming how long it takes."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, TypeVar, overload

_SHORTEST_PAUSE = 0.02
_LONGEST_PAUSE = 0.2
"""In seconds."""

T = TypeVar("T")


@overload
async def until(condition: Callable[[], Awaitable[T]], seconds: float = 15.0) -> T: ...
@overload
async def until(condition: Callable[[], T], seconds: float = 15.0) -> T: ...
async def until(condition: Callable[[], Any], seconds: float = 15.0) -> Any:
    """Poll the condition; return its first true value. Raises TimeoutError when there is none in time.

    The pause between two polls grows with the time waited, because a condition often calls a whole mesh.
    """
    began = monotonic()
    async with asyncio.timeout(seconds):
        while True:
            answer = condition()
            answer = await answer if inspect.isawaitable(answer) else answer
            if answer:
                return answer
            await asyncio.sleep(min(max(_SHORTEST_PAUSE, (monotonic() - began) / 10), _LONGEST_PAUSE))
