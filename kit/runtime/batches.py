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
        patience_seconds: float | None = None,
        leaves_at_once: bool = False,
    ) -> None:
        """`work` gets at most so many items and returns a result for each, in their order.

        `shared` are errors that are no item's fault, such as a database that is away: all items of the batch get them at once.
        A batch that takes longer than `patience_seconds` holds up no others: the next one runs beside it. With `leaves_at_once`
        a caller that is cancelled does not wait for the end of its batch, which may still do its item.
        """
        self._work = work
        self._most = most
        self._shared = shared
        self._patience_seconds = patience_seconds
        self._leaves_at_once = leaves_at_once
        self._waiting: list[_Entry[T, R]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._latest: asyncio.Task[None] | None = None
        """The batch for whose end the next one waits; None when none runs, or when it takes too long."""

    async def add(self, item: T) -> R:
        """Have the item done with others, and return its result. Raises what `work` raises for it.

        A caller that is cancelled while its item is being done waits for the end of that, so that it knows that nothing of it
        happens later, and is cancelled then.
        """
        entry: _Entry[T, R] = _Entry(item, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        if self._latest is None:
            self._begin()
        if self._leaves_at_once:
            return await entry.result
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

    def _begin(self) -> None:
        # In a context of its own: a batch belongs to the trace and the deadline of none of its items.
        task = self._latest = asyncio.create_task(self._run(), context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            # At the end of the process.
            for entry in self._waiting:
                entry.result.cancel()
            self._waiting.clear()
        self._go_on_after(task)

    def _go_on_after(self, task: asyncio.Task[None] | None) -> None:
        if self._latest is task:
            self._latest = None
            if self._waiting:
                self._begin()

    async def _run(self) -> None:
        batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
        patience = None
        if self._patience_seconds is not None:
            loop = asyncio.get_running_loop()
            patience = loop.call_later(self._patience_seconds, self._go_on_after, self._latest)
        try:
            await self._do(batch)
        finally:
            if patience:
                patience.cancel()
            # Without effect but when this task itself is cancelled.
            for entry in batch:
                entry.result.cancel()

    async def _do(self, batch: Sequence[_Entry[T, R]]) -> None:
        # Callers may have left.
        batch = [entry for entry in batch if not entry.result.done()]
        if not batch:
            return
        try:
            results = await self._work([entry.item for entry in batch])
            done = list(zip(batch, results, strict=True))
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, self._shared):
                for entry in batch:
                    await self._do([entry])
                return
            for entry in batch:
                if not entry.result.done():
                    entry.result.set_exception(error)
            return
        for entry, result in done:
            if not entry.result.done():
                entry.result.set_result(result)
