"""A thread for blocking work that must not overlap, such as that on one connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class OwnThread:
    """Runs work one after another.

    Work whose caller is cancelled goes on, because a thread cannot be interrupted, and what comes next waits for it. With
    `asyncio.to_thread` under a lock it would not: the cancelled caller gives the lock back while its thread still works.
    """

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, name)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return or raise what the work does. What has not begun when its caller is cancelled is dropped."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, partial(work, *args, **kwargs))
