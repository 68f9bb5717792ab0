"""The server whose HTTP/2 and gRPC run in Rust, outside the GIL. The only module that knows pygrpc_native.

It stands on that library's front alone, which takes calls by number and answers them. Methods with one request are served here, on
the event loop; what the front cannot do (reflection and other streams of requests, methods that nobody knows) goes through a Unix
socket to the grpcio server behind it. Batched methods are answered by the thread that takes them, which may wait meanwhile: so they
have a front of their own, and all other calls go to the one behind it.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import grpc
from pygrpc_native import EVENT_CANCEL, STREAM_CLOSED, STREAM_FULL, NativeGrpcFront

from kit.identity.caller import current_metadata

from .batches import Batch, BatchedCall, code_of
from .interceptor import MeshInterceptor, Refuse
from .limits import MESSAGE_BYTES, METADATA_BYTES
from .served_call import Metadata, ServedCall
from .socket_folder import SocketFolder

log = logging.getLogger(__name__)

_CALLS_TAKEN = 64
_SHORTEST_PAUSE_SECONDS = 0.001
_LONGEST_PAUSE_SECONDS = 0.5
_NO_LIMIT = 2**31 - 1
"""Of streams on one connection, as grpcio has none; the edge has one for those from outside."""
_LOOK_SECONDS = 0.01
_LAST_WORDS_SECONDS = 0.05
"""Between the last answer and the end of the front, which drops what it has not sent: one answer in ten without the pause."""
_TOO_LARGE = f"Received message larger than max ({MESSAGE_BYTES})"

# Quoted: generic to the type checker only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Event = tuple[int, int, int, bytes, object, tuple[Metadata, str, float | None]]


class _CallDetails(NamedTuple):
    method: str
    invocation_metadata: Metadata


class NativeServer(grpc.aio.Server):
    """Serves as grpc.aio's server does, in front of one that has the same handlers.

    With `batches` it serves these alone, so that what is behind it must serve all other methods.
    """

    def __init__(
        self,
        behind: grpc.aio.Server,
        *,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        refuse: Refuse | None = None,
        batches: Mapping[str, Batch] | None = None,
    ) -> None:
        self._behind = behind
        self._interceptors = tuple(interceptors)
        self._refuse = refuse
        self._batches = batches or {}
        self._handlers: dict[str, Handler] = {}
        self._table: list[tuple[str, Handler, Sequence[grpc.aio.ServerInterceptor]]] = []
        self._calls: dict[int, _Context] = {}
        self._stopping = self._answering = self._ended = False
        self._terminated = asyncio.Event()

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        self._behind.add_generic_rpc_handlers(generic_rpc_handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Handler]) -> None:
        self._behind.add_registered_method_handlers(service_name, dict(method_handlers))
        for name, handler in method_handlers.items():
            if not handler.request_streaming:
                self._handlers[f"/{service_name}/{name}"] = handler

    def add_insecure_port(self, address: str) -> int:
        """Raises RuntimeError when the address is taken, as grpcio does."""
        try:
            self._front = NativeGrpcFront(
                address,
                [],
                io_threads=1,
                call_details=True,
                delay_stream_headers=True,
                max_metadata_size=METADATA_BYTES,
                max_concurrent_streams=_NO_LIMIT,
                keepalive_permit_without_calls=True,
            )
        except OSError as error:
            raise RuntimeError(f"{address} cannot be bound") from error
        return self._front.bound_port

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        raise NotImplementedError("the native server knows no TLS; set STORYMESH_GRPC_SERVER=grpcio")

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._folder = SocketFolder()
        self._behind.add_insecure_port(f"unix:{self._folder.socket}")
        await self._behind.start()
        self._front.set_fallback(self._folder.socket)
        if self._batches:
            self._front.add_methods([(path, False) for path in self._batches])
            take = self._take_batches
        else:
            self._table = [(path, *self._surrounded(path, handler)) for path, handler in self._handlers.items()]
            # All as streams: a call with one answer that the front knows as such cannot send its headers before a status.
            self._front.add_methods([(path, True) for path in self._handlers])
            take = self._take_calls
        self._front.start()
        threading.Thread(target=self._take, args=(take,), name="calls", daemon=True).start()

    async def stop(self, grace: float | None) -> None:
        """Calls that come meanwhile are still answered: whoever sends them does not know yet."""
        if self._stopping:
            await self._terminated.wait()
            return
        self._stopping = True
        behind = asyncio.ensure_future(self._behind.stop(grace))
        until = self._loop.time() + (grace or 0)
        # The server behind too: calls that come while it ends are served, and would be cut off afterwards.
        while (self._calls or self._answering or not behind.done()) and self._loop.time() < until:  # noqa: ASYNC110  # in threads
            await asyncio.sleep(_LOOK_SECONDS)
        self._ended = True
        late = list(self._calls.values())
        for call in late:
            call.cancel()
        await asyncio.gather(*(call.task for call in late), return_exceptions=True)
        await behind
        await asyncio.sleep(_LAST_WORDS_SECONDS)
        await self._loop.run_in_executor(None, self._front.close)
        self._folder.remove()
        self._terminated.set()

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        try:
            async with asyncio.timeout(timeout):
                await self._terminated.wait()
        except TimeoutError:
            return True
        return False

    def _take(self, take: Callable[[], None]) -> None:
        try:
            take()
        except Exception:
            log.exception("the native server has failed")
        finally:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._terminated.set)

    def _take_calls(self) -> None:
        """In a thread of its own, because the front waits for calls by blocking."""
        while (taken := self._front.recv_batch_details(_CALLS_TAKEN)) is not None:
            events = [event for event in cast("list[Event]", taken) if not self._refused(event)]
            if self._loop.is_closed():
                self._front.close()
            elif events:
                self._loop.call_soon_threadsafe(self._begin, events)

    def _refused(self, event: Event) -> bool:
        """Refuse a call that would find no place. Here, because on the loop a task for it would keep other calls waiting."""
        kind, number, method, _, _, details = event
        if self._refuse is None or kind == EVENT_CANCEL:
            return False
        metadata, peer, _ = details
        status = self._refuse(self._table[method][0], metadata, peer)
        if status is None:
            return False
        self._front.fail(number, code_of(status), status.details, list(status.trailing_metadata or ()))
        return True

    def _begin(self, events: Iterable[Event]) -> None:
        for kind, number, method, data, _, details in events:
            if kind == EVENT_CANCEL:
                if number in self._calls:
                    self._calls[number].cancel()
                continue
            if self._ended:
                self._front.fail(number, grpc.StatusCode.UNAVAILABLE.value[0], "the server has stopped")
                continue
            context = self._calls[number] = _Context(self._front, number, *details)
            context.task = self._loop.create_task(self._serve(context, data, *self._table[method]))

    async def _serve(
        self,
        context: _Context,
        data: bytes,
        path: str,
        handler: Handler,
        interceptors: Sequence[grpc.aio.ServerInterceptor],
    ) -> None:
        try:
            context.begin()
            if len(data) > MESSAGE_BYTES:
                context.fail(grpc.StatusCode.RESOURCE_EXHAUSTED, _TOO_LARGE)
                return
            current_metadata.set(context.metadata)
            found: Handler | None = handler
            if interceptors:
                found = await _intercepted(interceptors, handler, _CallDetails(path, context.invocation_metadata()))
            if found is None:
                context.fail(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
                return
            await context.answer(found, data)
        except grpc.aio.AbortError:
            context.fail()
        except asyncio.CancelledError:
            # The client is still there when the call cancelled itself, or the server does.
            context.fail(grpc.StatusCode.UNAVAILABLE if self._stopping else grpc.StatusCode.CANCELLED)
        except Exception as error:
            log.exception("unexpected error in %s", path)
            context.fail(grpc.StatusCode.UNKNOWN, f"Unexpected {type(error)}")
        finally:
            del self._calls[context.number]
            context.finish()

    def _surrounded(self, path: str, handler: Handler) -> tuple[Handler, Sequence[grpc.aio.ServerInterceptor]]:
        """The handler with what our own interceptors put around it, and those that are asked at each call."""
        interceptors = self._interceptors
        while interceptors and isinstance(last := interceptors[-1], MeshInterceptor):
            handler, interceptors = last.surrounded(path, handler), interceptors[:-1]
        return handler, interceptors

    def _take_batches(self) -> None:
        """In the thread that takes the calls, so that no call waits for another thread to wake."""
        paths, front = list(self._batches), self._front
        most = max(batch.most for batch in self._batches.values())
        while (events := front.recv_batch_details(most)) is not None:
            self._answering = True
            if len(events) < most:
                # What came while this thread woke up would wait for a batch of its own: at 64 in flight, batches had a third fewer.
                events += front.recv_batch_details(most - len(events), 0) or []
            # Those whose callers left while they waited.
            left = {number for kind, number, *_ in events if kind == EVENT_CANCEL}
            taken: dict[int, list[Event]] = {}
            for event in cast("list[Event]", events):
                if event[0] == EVENT_CANCEL or event[1] in left:
                    continue
                if len(event[3]) > MESSAGE_BYTES:
                    front.fail(event[1], grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], _TOO_LARGE)
                    continue
                taken.setdefault(event[2], []).append(event)
            for method, calls in taken.items():
                batch = self._batches[paths[method]]
                for first in range(0, len(calls), batch.most):
                    self._answer(batch, calls[first : first + batch.most])
            self._answering = False

    def _answer(self, batch: Batch, events: Sequence[Event]) -> None:
        calls = [BatchedCall(data, metadata, remaining, peer) for *_, data, _, (metadata, peer, remaining) in events]
        answers = batch.answer_in_thread(calls, self._loop)
        respond = self._front.respond
        for event, answer in zip(events, answers, strict=True):
            if isinstance(answer, bytes):
                respond(event[1], answer)
            else:
                self._front.fail(event[1], code_of(answer), answer.details, list(answer.trailing_metadata or ()))


class _Context(ServedCall):
    """One call, and what its servicer sees of it."""

    task: asyncio.Task[None]

    def __init__(
        self, front: NativeGrpcFront, number: int, metadata: Metadata, peer: str, remaining: float | None
    ) -> None:
        super().__init__(metadata, peer, remaining)
        self.number = number
        self._front = front
        self._begun = self._has_headers = False
        self._serializer: Callable[[Any], bytes] | None = None

    async def answer(self, handler: Handler, data: bytes) -> None:
        self._serializer = handler.response_serializer
        request = handler.request_deserializer(data) if handler.request_deserializer else data
        behaviour: Any = handler.unary_stream if handler.response_streaming else handler.unary_unary
        answered = behaviour(request, self)
        if hasattr(answered, "__aiter__"):
            try:
                async for message in answered:
                    await self.write(message)
            finally:
                await answered.aclose()
        else:
            answer = await answered if inspect.isawaitable(answered) else answered
            if not handler.response_streaming and self._code in (None, grpc.StatusCode.OK):
                # Together with the end, which follows at once, so that both leave in one packet.
                await self._send(answer)
        if self._code in (None, grpc.StatusCode.OK):
            self._front.stream_end(self.number, list(self._trailing) or None)
        else:
            self.fail()

    def fail(self, code: grpc.StatusCode | None = None, details: str | None = None) -> None:
        """Ends the call with this status, or with the one it has. Does nothing when it has ended."""
        code = code or self._code or grpc.StatusCode.UNKNOWN
        details = self._details if details is None else details
        self._front.fail(self.number, code.value[0], details, list(self._trailing) or None)

    def begin(self) -> None:
        """To be called by its task at first. Raises CancelledError if the call was cancelled before."""
        self._begun = True
        if self._cancelled:
            raise asyncio.CancelledError

    def cancel(self) -> None:
        self._cancelled = True
        if self._begun:
            # A task that is cancelled before its first step takes none, so that the call would never end.
            self.task.cancel()

    async def write(self, message: Any) -> None:
        await self._send(message)
        # Otherwise a stream that never waits for anything else would keep the loop from all other calls.
        await asyncio.sleep(0)

    async def _send(self, message: Any) -> None:
        """Waits while the client does not read; the front cannot tell when it does, so that it is asked, ever less often."""
        data = self._serializer(message) if self._serializer else message
        self._has_headers = True
        sent = self._front.stream_try_send(self.number, data)
        began = time.monotonic()
        while sent == STREAM_FULL:
            waited = time.monotonic() - began
            await asyncio.sleep(min(max(waited / 4, _SHORTEST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS))
            sent = self._front.stream_try_send(self.number, data)
        if sent == STREAM_CLOSED:
            self.cancel()

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        if self._has_headers:
            raise grpc.aio.UsageError("the headers have been sent")
        self._has_headers = True
        self._front.stream_send_initial_metadata(self.number, list(initial_metadata))


async def _intercepted(
    interceptors: Sequence[grpc.aio.ServerInterceptor], handler: Handler, details: _CallDetails
) -> Handler | None:
    """The handler as the interceptors have changed it, of which the first is the outermost."""
    if not interceptors:
        return handler

    async def go_on(details: grpc.HandlerCallDetails) -> Handler | None:
        return await _intercepted(interceptors[1:], handler, cast("_CallDetails", details))

    intercept: Any = interceptors[0].intercept_service
    return cast("Handler | None", await intercept(go_on, details))
