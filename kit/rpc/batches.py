"""Calls of one method that are answered together, so that many share one round trip to a store.

One batch is in flight at a time: what comes meanwhile is the next one. So the busier the server, the larger the batches.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import grpc

from kit.errors import Internal, MeshError
from kit.runtime import tracing

from .statuses import as_mesh_error, to_grpc

log = logging.getLogger(__name__)

_LONGEST_DEADLINE_SECONDS = 86_400
"""Without a deadline, some versions of grpc answer a time far beyond any call."""


class BatchedCall(NamedTuple):
    """A call as it came: nothing of it is decoded or checked, except that it is no longer than a message may be."""

    request: bytes
    metadata: Sequence[tuple[str, str | bytes]]
    """Keys in lower case; the values of keys that end in `-bin` are bytes."""
    remaining: float | None
    """Seconds until the caller's deadline, counted when the call was taken. None without a deadline."""
    peer: str


Answer = bytes | MeshError
"""The serialised response, or an error, which becomes its status."""

BatchHandler = Callable[[Sequence[BatchedCall]], "Sequence[Answer] | Awaitable[Sequence[Answer]]"]
"""Gives as many answers as calls, in their order. A plain function may block, because it runs in a thread of its own; a coroutine
function runs on the event loop. When it raises, all of its calls get that error."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A method that is served in batches."""

    path: str
    handler: BatchHandler
    most: int

    def answer_in_thread(
        self, calls: Sequence[BatchedCall], loop: asyncio.AbstractEventLoop
    ) -> Sequence[bytes | grpc.Status]:
        """Blocks, also while a coroutine function runs on the loop."""
        if inspect.iscoroutinefunction(self.handler):
            return asyncio.run_coroutine_threadsafe(self.answer_on_loop(calls), loop).result()
        began = time.time_ns()
        try:
            answers = self._checked(calls, cast("Sequence[Answer]", self.handler(calls)))
        except Exception as error:
            answers = self._failed(calls, error)
        return self._traced(calls, answers, began)

    async def answer_on_loop(self, calls: Sequence[BatchedCall]) -> Sequence[bytes | grpc.Status]:
        began = time.time_ns()
        try:
            answers = self._checked(calls, await cast("Awaitable[Sequence[Answer]]", self.handler(calls)))
        except Exception as error:
            answers = self._failed(calls, error)
        return self._traced(calls, answers, began)

    def _traced(
        self, calls: Sequence[BatchedCall], answers: Sequence[bytes | grpc.Status], began: int
    ) -> Sequence[bytes | grpc.Status]:
        """The answers; each call gets a span in its caller's trace, if spans go anywhere."""
        if tracing.exports():
            for call, answer in zip(calls, answers, strict=True):
                code = 0 if isinstance(answer, bytes) else code_of(answer)
                tracing.served(self.path, call.metadata, began=began, code=code)
        return answers

    def _checked(self, calls: Sequence[BatchedCall], answers: Sequence[Answer]) -> Sequence[bytes | grpc.Status]:
        if len(answers) != len(calls):
            raise RuntimeError(f"{len(answers)} answers to {len(calls)} calls")
        return [answer if isinstance(answer, bytes) else to_grpc(answer) for answer in answers]

    def _failed(self, calls: Sequence[BatchedCall], error: Exception) -> Sequence[grpc.Status]:
        shown = as_mesh_error(error)
        if isinstance(shown, Internal):
            log.error("unexpected error in %s", self.path, exc_info=error)
        return [to_grpc(shown)] * len(calls)


def code_of(status: grpc.Status) -> int:
    """The number of its code."""
    return status.code.value[0]


class BatchServicer:
    """Serves a batch's method on grpcio, whose server hands over calls one by one."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._waiting: deque[tuple[BatchedCall, asyncio.Future[bytes | grpc.Status]]] = deque()
        self._running: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "batches")

    def add_to(self, server: grpc.aio.Server) -> None:
        service, _, method = self._batch.path[1:].partition("/")
        handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(self._serve)
        server.add_registered_method_handlers(service, {method: handler})

    async def _serve(self, request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        left = context.time_remaining()
        remaining = left if left is not None and left < _LONGEST_DEADLINE_SECONDS else None
        metadata = cast("Sequence[tuple[str, str | bytes]]", context.invocation_metadata() or ())
        call = BatchedCall(request, tuple(metadata), remaining, context.peer())
        answer: asyncio.Future[bytes | grpc.Status] = asyncio.get_running_loop().create_future()
        self._waiting.append((call, answer))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._answer_all())
        answered = await answer
        if isinstance(answered, bytes):
            return answered
        await context.abort_with_status(answered)

    async def _answer_all(self) -> None:
        loop = asyncio.get_running_loop()
        # In a batch of its own, the first would leave those behind that come in the same turn of the loop.
        await asyncio.sleep(0)
        while self._waiting:
            taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._batch.most))]
            taken = [(call, answer) for call, answer in taken if not answer.done()]
            calls = [call for call, _ in taken]
            if inspect.iscoroutinefunction(self._batch.handler):
                answers = await self._batch.answer_on_loop(calls)
            else:
                answers = await loop.run_in_executor(self._thread, self._batch.answer_in_thread, calls, loop)
            for (_, answer), answered in zip(taken, answers, strict=True):
                if not answer.done():
                    answer.set_result(answered)
