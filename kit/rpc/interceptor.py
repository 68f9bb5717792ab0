"""What happens around every call: log and numbers, error mapping, load check, deadline, access, validation, then the servicer.

One interceptor does it in that order, so that the order can be read here. A stream stays under the watch of access until it ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NoReturn, TypeAlias

import grpc
from google.protobuf.message import DecodeError, Message
from grpc import StatusCode
from grpc.aio import ServicerContext
from opentelemetry.trace import Span, Status
from opentelemetry.trace import StatusCode as SpanStatusCode

from kit.errors import Internal, MalformedRequest, MeshError, StreamStalled, Unimplemented
from kit.identity.access import AccessControl
from kit.identity.caller import Caller, Metadata, address_at, address_told, current_caller, current_metadata
from kit.runtime import tracing
from kit.runtime.metrics import Metrics

from . import deadline
from .peer_errors import shown
from .statuses import as_mesh_error, to_grpc
from .validation import validate

log = logging.getLogger(__name__)

_STALLED_SECONDS = 1.0
_LITTLE_SECONDS = 0.05

# What OpenTelemetry counts as the server's fault; the rest is the caller's.
_FAULTS = {
    StatusCode.UNKNOWN,
    StatusCode.DEADLINE_EXCEEDED,
    StatusCode.UNIMPLEMENTED,
    StatusCode.INTERNAL,
    StatusCode.UNAVAILABLE,
    StatusCode.DATA_LOSS,
}

# Quoted: these are generic to the type checker only.
Context: TypeAlias = "ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
HandlerOf: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"

LoadCheck = Callable[[], None]
"""Sheds load: raises a MeshError when a call would find no place, before anything is known of it but its method.

The native server asks it in the thread that takes its calls.
"""

Refuse = Callable[[str, Metadata, str], "grpc.Status | None"]
"""Asks the load check about a call by its method, what came with it and its peer. Returns the status if it is refused."""


class MeshInterceptor(grpc.aio.ServerInterceptor):
    """Surrounds the methods of `services`; others on the same server (health, reflection) pass untouched."""

    def __init__(
        self,
        services: frozenset[str],
        access: AccessControl,
        metrics: Metrics,
        *,
        call_seconds: float,
        write_seconds: float,
        load_checks: Mapping[str, LoadCheck],
    ) -> None:
        self._services = services
        self._load_checks = load_checks
        self._access = access
        self._metrics = metrics
        self._call_seconds = call_seconds
        self._write_seconds = write_seconds
        self._surrounded: dict[str, Handler] = {}

    async def intercept_service(
        self, continuation: HandlerOf, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return _UNKNOWN_METHOD
        current_metadata.set(handler_call_details.invocation_metadata or ())
        return self.surrounded(str(handler_call_details.method), handler)

    def surrounded(self, path: str, handler: Handler) -> Handler:
        """The handler of a method with what surrounds its calls; made once, so `current_metadata` must be set before a call."""
        if path not in self._surrounded:
            self._surrounded[path] = self._surround(path, handler)
        return self._surrounded[path]

    def _surround(self, path: str, handler: Handler) -> Handler:
        if path.split("/")[1] not in self._services:
            return handler
        # Without deserialisers: grpc would answer bytes that are no message with the text of an exception, before any of this.
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._streaming(path, handler), None, handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(self._unary(path, handler), None, handler.response_serializer)

    def refuse(self, path: str, metadata: Metadata, peer: str) -> grpc.Status | None:
        """Ask the load check of a call before it is handed to the event loop. Logs and counts a refusal; safe in any thread."""
        check = self._load_checks.get(path)
        if check is None:
            return None
        try:
            check()
        except MeshError as refused:
            error = shown(refused)
        except Exception:
            # A mistake of ours: the call meets it again where it is served, and there it is logged.
            return None
        else:
            return None
        with tracing.serving(path, metadata) as span:
            span.set_attribute("rpc.grpc.status_code", error.code.value[0])
            _Ended(path, error.code, "failure", 0.0, dict(metadata), peer, error).tell(self._metrics)
        return to_grpc(error)

    def _unary(self, path: str, handler: Handler) -> Callable[[bytes, Context], Awaitable[Message]]:
        behaviour: Any = handler.unary_unary

        async def serve(data: bytes, context: Context) -> Message:
            with tracing.serving(path, current_metadata.get()) as span:
                async with _Call(path, context, span, self._metrics) as call:
                    if load_check := self._load_checks.get(path):
                        load_check()
                    async with deadline.within(_remaining(context), self._call_seconds):
                        request = await self._admit(call, path, handler, data, context)
                        answer: Message = await behaviour(request, context)
                        return answer
                await call.blame_nobody()
                await call.abort()

        return serve

    def _streaming(self, path: str, handler: Handler) -> Callable[[bytes, Context], Awaitable[None]]:
        behaviour: Any = handler.unary_stream

        # Use context.write(): on disconnect grpc.aio leaves a generator suspended, the garbage collector closes it in another task,
        # and touching the dead context crashes the process.
        async def serve(data: bytes, context: Context) -> None:
            with tracing.serving(path, current_metadata.get()) as span:
                async with (
                    _Call(path, context, span, self._metrics) as call,
                    deadline.of_stream(_remaining(context)),
                ):
                    request = await self._admit(call, path, handler, data, context)
                    async with self._access.standing(call.caller), aclosing(behaviour(request, context)) as messages:
                        async for message in messages:
                            await self._write(context, message)
                    return
                await call.abort()

        return serve

    async def _write(self, context: Context, message: Message) -> None:
        """Write within a bounded time: a client that does not read would hold the stream for ever by its flow control."""
        try:
            async with asyncio.timeout(self._write_seconds):
                await context.write(message)
        except TimeoutError:
            raise StreamStalled from None

    async def _admit(self, call: _Call, path: str, handler: Handler, data: bytes, context: Context) -> Message:
        call.caller = await self._access.admit(path, current_metadata.get())
        current_caller.set(call.caller)
        try:
            request: Message = handler.request_deserializer(data)  # type: ignore[misc]  # generated code always gives one
        except DecodeError:
            raise MalformedRequest from None
        validate(request)
        return request


async def _refuse_unknown(_messages: object, context: Context) -> None:
    # Without a line or a number of its own: the name is the caller's invention.
    await context.abort_with_status(to_grpc(Unimplemented()))


_UNKNOWN_METHOD: Handler = grpc.stream_stream_rpc_method_handler(_refuse_unknown)
"""Fits every call, as it waits for no message."""


def _remaining(context: Context) -> float | None:
    remaining = context.time_remaining()
    # Without a deadline grpc answers None or, in some versions, a time far beyond any call.
    return remaining if remaining is not None and remaining < 86_400 else None


class _Call:
    """Logs and counts one call.

    Its error is kept until it can be sent: `abort` must be awaited outside of the handlers of `except`.
    """

    def __init__(self, path: str, context: Context, span: Span, metrics: Metrics) -> None:
        self._path = path
        self._context = context
        self._span = span
        self._metrics = metrics
        self._error: MeshError | None = None
        self.caller: Caller | None = None

    async def __aenter__(self) -> _Call:
        self._started = perf_counter()
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if error is None:
            self._record(StatusCode.OK, "success")
            return False
        if isinstance(error, asyncio.CancelledError):
            self._record(StatusCode.CANCELLED, "unknown")
            return False
        if not isinstance(error, Exception):
            return False
        if isinstance(error, grpc.aio.AbortError):
            # The status is on its way already, and a call is aborted only once.
            self._record(StatusCode(self._context.code()), "failure")
            return False
        self._error = Unimplemented() if self._nobody_wrote_it(error) else as_mesh_error(error)
        if isinstance(self._error, Internal):
            log.error("unexpected error in %s", self._path, exc_info=error)
            self._span.record_exception(error)
        self._record(self._error.code, "failure", self._error)
        return True

    def _nobody_wrote_it(self, error: Exception) -> bool:
        """Whether it comes from the method of the generated base class, which says so in the context as well."""
        return isinstance(error, NotImplementedError) and self._context.code() == StatusCode.UNIMPLEMENTED

    async def blame_nobody(self) -> None:
        """Before a status that is the server's fault, of a call with one answer: keeps Envoy from counting it against this process.

        Callers can bring such a status about, by a deadline that is too short, and must not have the process put aside for all.
        Envoy counts one that comes instead of headers, as gRPC's library sends it when a connection is broken. So headers go
        first; and when the deadline is about to pass, nothing goes, because between the two it would cut the answer off.
        """
        if self._error is None or self._error.code not in _FAULTS:
            return
        left = _remaining(self._context)
        if left is not None and left < _LITTLE_SECONDS:
            # Envoy, or the caller itself, ends the call first, and so this wait.
            await asyncio.sleep(left + _LITTLE_SECONDS)
        await self._context.send_initial_metadata(())

    async def abort(self) -> NoReturn:
        """Ends the call with the error's status."""
        if self._error is None:
            raise RuntimeError("a call ended with neither an answer nor an error")
        if isinstance(self._error, StreamStalled):
            # The status stands in line behind what the client does not read; grpc keeps it there, without this call.
            with suppress(TimeoutError):
                async with asyncio.timeout(_STALLED_SECONDS):
                    await self._context.abort_with_status(to_grpc(self._error))
            raise asyncio.CancelledError
        await self._context.abort_with_status(to_grpc(self._error))

    def _record(self, code: StatusCode, outcome: str, error: MeshError | None = None) -> None:
        self._span.set_attribute("rpc.grpc.status_code", code.value[0])
        if code in _FAULTS:
            self._span.set_status(Status(SpanStatusCode.ERROR))
        seconds = perf_counter() - self._started
        metadata = dict(current_metadata.get())
        # Asked now, for later the call may be gone.
        peer = "" if address_told(metadata) else self._context.peer()

        ended = _Ended(self._path, code, outcome, seconds, metadata, peer, error, self.caller)
        # When the answer is on its way: to write a line takes longer than many an operation.
        asyncio.get_running_loop().call_soon(ended.tell, self._metrics)


@dataclass(slots=True)
class _Ended:
    """A call that has ended, as it is counted and logged."""

    path: str
    code: StatusCode
    outcome: str
    seconds: float
    metadata: Mapping[str, str | bytes]
    peer: str
    """Of no interest when the metadata tell the client's address."""
    error: MeshError | None
    caller: Caller | None = None

    def tell(self, metrics: Metrics) -> None:
        error = self.error
        metrics.called(self.path, self.code.name, self.seconds, error.reason if error else None)
        fields: dict[str, object] = {
            "event.action": self.path,
            "event.category": "web",
            "event.outcome": self.outcome,
            "event.duration": int(self.seconds * 1e9),
            "rpc.grpc.status_code": self.code.name,
            "client.ip": address_told(self.metadata) or address_at(self.peer),
        }
        request_id = self.metadata.get("x-request-id")
        if request_id:
            fields["http.request.id"] = str(request_id)[:64]
        if self.caller:
            fields["user.id"] = str(self.caller.user_id)
        if error:
            fields["error.code"] = error.reason
        log.info("%s %s", self.path, self.code.name, extra=fields)
