"""Batching: what many tasks want done at the same moment is done together, as in a group commit.

Nobody waits for a batch to fill. An item that comes while nothing runs begins a batch with what else is ready in that turn of the
event loop; those that come during a batch are the next one. So a quiet process pays no delay, and a busy one pays a round trip and
a commit for many items instead of one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_MOST = 100


@dataclass(eq=False, slots=True)
class _Entry(Generic[T, R]):
    item: T
    result: asyncio.Future[R]


class Batcher(Generic[T, R]):
    """Runs one batch at a time. An item fails by itself: a batch that raises is tried again item by item.

    So `work` must change nothing when it raises, or may be repeated.
    """

    def __init__(
        self,
        work: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        *,
        most: int = _MOST,
        shared: tuple[type[Exception], ...] = (),
    ) -> None:
        """`work` gets at most so many items and returns a result for each, in their order.

        `shared` are errors that are no item's fault, such as a database that is away: all items of the batch get them at once.
        """
        self._work = work
        self._most = most
        self._shared = shared
        self._waiting: list[_Entry[T, R]] = []
        self._running: asyncio.Task[None] | None = None

    async def add(self, item: T) -> R:
        """Have the item done with others, and return its result. Raises what `work` raises for it.

        A caller that is cancelled while its item is being done waits for the end of that, so that it knows that nothing of it
        happens later, and is cancelled then.
        """
        entry: _Entry[T, R] = _Entry(item, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        if self._running is None:
            # In a context of its own: a batch belongs to the trace of none of its items.
            self._running = asyncio.create_task(self._run(), context=Context())
        try:
            return await asyncio.shield(entry.result)
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
            elif not entry.result.done():
                await asyncio.wait([entry.result])
            if entry.result.done() and not entry.result.cancelled():
                entry.result.exception()  # Nobody else asks for it.
            raise

    async def _run(self) -> None:
        batch: list[_Entry[T, R]] = []
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
                await self._do(batch)
        finally:
            self._running = None
            # Without effect but when this task itself is cancelled, at the end of the process.
            for entry in (*batch, *self._waiting):
                entry.result.cancel()

    async def _do(self, batch: Sequence[_Entry[T, R]]) -> None:
        try:
            results = await self._work([entry.item for entry in batch])
            done = list(zip(batch, results, strict=True))
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, self._shared):
                for entry in batch:
                    await self._do([entry])
                return
            for entry in batch:
                entry.result.set_exception(error)
            return
        for entry, result in done:
            entry.result.set_result(result)
