"""Interceptors for every call: deadline, access token, one retry with a renewed token, typed errors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, cast

from grpc import StatusCode
from grpc.aio import (
    AioRpcError,
    ClientCallDetails,
    ClientInterceptor,
    Metadata,
    UnaryStreamCall,
    UnaryStreamClientInterceptor,
    UnaryUnaryCall,
    UnaryUnaryClientInterceptor,
)
from storymesh.methods import Method

from .errors import StorymeshError
from .session import Session

_TOKEN_REFUSED = {"UNAUTHENTICATED", "SESSION_REVOKED", "TOKEN_EXPIRED", "TOKEN_INVALID"}
"""Reasons for which a call is retried with a renewed token: a service's, the revocation list's and the edge's.

SESSION_REVOKED is among them because withdrawing a signing key ends tokens, not sessions. A wrong password or code has another
reason with the same status, and must not be sent twice, because each try counts as a failure.
"""

Unary = Callable[[ClientCallDetails, Any], Awaitable[UnaryUnaryCall[Any, Any]]]
Streaming = Callable[[ClientCallDetails, Any], Awaitable[UnaryStreamCall[Any, Any]]]
SessionOf = Callable[[], Session]


def interceptors(methods: Mapping[str, Method], session: SessionOf, call_seconds: float) -> list[ClientInterceptor]:
    """The channel's interceptors. `session` is a function, because the session needs the channel and is made after it."""
    credentials = _Credentials(methods, session)
    return [_UnaryCalls(credentials, call_seconds), _StreamingCalls(credentials)]


class _Credentials:
    """Finds the access token for a call: none for a public method."""

    def __init__(self, methods: Mapping[str, Method], session: SessionOf) -> None:
        self._methods = methods
        self._session = session

    async def token(self, details: ClientCallDetails) -> str | None:
        path: str | bytes = details.method
        path = path.decode() if isinstance(path, bytes) else path
        if self._methods[path].access == "PUBLIC":
            return None
        return await self._session().access_token()

    async def another(self, refused: str) -> str:
        return await self._session().renewed(refused)


class _UnaryCalls(UnaryUnaryClientInterceptor):
    def __init__(self, credentials: _Credentials, call_seconds: float) -> None:
        self._credentials = credentials
        self._call_seconds = call_seconds

    async def intercept_unary_unary(
        self, continuation: Any, client_call_details: ClientCallDetails, request: Any
    ) -> UnaryUnaryCall[Any, Any]:
        call: Unary = continuation
        seconds = client_call_details.timeout
        details = _changed(client_call_details, timeout=self._call_seconds if seconds is None else seconds)
        token = await self._credentials.token(details)
        try:
            return await _answered(call, _authorized(details, token), request)
        except StorymeshError as error:
            if token is None or not _refuses_token(error):
                raise
        token = await self._credentials.another(token)
        return await _answered(call, _authorized(details, token), request)


class _StreamingCalls(UnaryStreamClientInterceptor):
    """The interceptor of streams. It sets no deadline, because a watch lasts as long as the story is written."""

    def __init__(self, credentials: _Credentials) -> None:
        self._credentials = credentials

    async def intercept_unary_stream(
        self, continuation: Any, client_call_details: ClientCallDetails, request: Any
    ) -> AsyncIterator[Any]:
        open_call: Streaming = continuation
        token = await self._credentials.token(client_call_details)
        call = await open_call(_authorized(client_call_details, token), request)
        if token is not None:
            # Returns when the first message or the refusal arrives.
            await call.initial_metadata()
            if call.done() and await _refused(call):
                token = await self._credentials.another(token)
                call = await open_call(_authorized(client_call_details, token), request)
        return _messages(call)


async def _answered(call: Unary, details: ClientCallDetails, request: Any) -> UnaryUnaryCall[Any, Any]:
    """Waits for the call and returns it when it has succeeded. Raises StorymeshError."""
    started = await call(details, request)
    try:
        await started
    except AioRpcError as error:
        raise StorymeshError.of(error) from None
    return started


async def _refused(call: UnaryStreamCall[Any, Any]) -> bool:
    code = await call.code()
    if code is not StatusCode.UNAUTHENTICATED:
        return False
    return _refuses_token(StorymeshError(code, trailing_metadata=Metadata(*(await call.trailing_metadata() or ()))))


async def _messages(call: UnaryStreamCall[Any, Any]) -> AsyncIterator[Any]:
    try:
        async for message in call:
            yield message
    except AioRpcError as error:
        raise StorymeshError.of(error) from None


def _refuses_token(error: StorymeshError) -> bool:
    return error.code() is StatusCode.UNAUTHENTICATED and error.reason in _TOKEN_REFUSED


def _authorized(details: ClientCallDetails, token: str | None) -> ClientCallDetails:
    if token is None:
        return details
    metadata = Metadata(*(details.metadata or ()))
    metadata["authorization"] = f"Bearer {token}"
    return _changed(details, metadata=metadata)


def _changed(details: ClientCallDetails, **changes: object) -> ClientCallDetails:
    # ClientCallDetails is a named tuple at run time, but not in its type.
    return cast("ClientCallDetails", cast("Any", details)._replace(**changes))
