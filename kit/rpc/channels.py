"""Channels to other services of the mesh, for peers.py.

A call gets the service's own token for that one callee, or goes out in a person's name. It ends in the callee's answer or in the
MeshError that the callee raised. What the contract lets be repeated is tried again while the callee is away or restarting; anything
else is sent once, and waits for a connection beforehand.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import cache
from typing import Any

import grpc
from grpc import StatusCode
from grpc.aio import (
    AioRpcError,
    BaseError,
    Channel,
    ClientCallDetails,
    ClientInterceptor,
    Metadata,
    UnaryStreamCall,
    UnaryStreamClientInterceptor,
    UnaryUnaryCall,
    UnaryUnaryClientInterceptor,
)
from opentelemetry.instrumentation.grpc import aio_client_interceptors

from kit.errors import DeadlineExceeded, MeshError
from kit.identity.tokens import ServiceTokens
from mesh import contract
from mesh.contract import ContractError

from . import deadline
from .peer_errors import from_peer, of_channel, unreadable_answer

_DEFAULT_SECONDS = 5.0

_ATTEMPTS = 4
_FIRST_WAIT_SECONDS = 0.2
_LONGEST_WAIT_SECONDS = 1.0

_CONNECT_SECONDS = 1.0
"""How long a call that must not be repeated waits for a connection: as long as the repetitions of the others take together."""

Wait = Callable[[int], float]


def wait_seconds(failures: int) -> float:
    """Full jitter: many callers lose one callee at the same moment, and must not come back at the same moment."""
    most = min(_FIRST_WAIT_SECONDS * 2.0 ** (failures - 1), _LONGEST_WAIT_SECONDS)
    return random.uniform(0, most)  # noqa: S311  # spreads load; nothing secret depends on it


def in_the_name_of(access_token: str) -> tuple[tuple[str, str], ...]:
    """Metadata of a call that a person makes through us: the callee decides by their token, and its refusal may be told to them."""
    return (("authorization", f"Bearer {access_token}"),)


def connect(target: str, callee: str, tokens: ServiceTokens, *, wait: Wait = wait_seconds) -> Channel:
    """A channel that reconnects by itself; the replicas behind the name share the load.

    Calls raise MeshError alone. Those with one answer end within the deadline of the call being served, at most five seconds
    unless they ask for more; streams have no deadline unless they ask for one.
    """
    calls = _Calls(callee, tokens, wait)
    calls.channel = grpc.aio.insecure_channel(
        target,
        options=[
            ("grpc.lb_policy_name", "round_robin"),
            # Not the target: a list of addresses is no authority by RFC 3986, and the native server resets such calls.
            ("grpc.default_authority", callee),
            # A replica that stands still is missed within 2.5 s, and what was asked of it asked of another.
            ("grpc.keepalive_time_ms", 1_000),
            # Also for pings that keep nothing alive: gRPC's own setting for those that do has no effect on calls in flight.
            ("grpc.http2.ping_timeout_ms", 1_500),
            ("grpc.http2.max_pings_without_data", 0),
            # How long a connection may take to be answered: a replica that stands still is connected to by its kernel.
            ("grpc.min_reconnect_backoff_ms", 2_000),
            # gRPC's own first wait is a second, longer than all the retries above take together.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2_000),
        ],
        interceptors=[_Unary(calls), _Streaming(calls), *_tracing()],
    )
    return calls.channel


class _Calls:
    """What calls with one answer and streams have in common."""

    channel: Channel

    def __init__(self, callee: str, tokens: ServiceTokens, wait: Wait) -> None:
        self._callee = callee
        self._tokens = tokens
        self._wait = wait

    async def begin(self, asked: ClientCallDetails, seconds: float | None) -> _Attempts:
        """`seconds`: what is left for all attempts together; None for a stream without a deadline."""
        attempts = _Attempts(asked, seconds, self._callee, self._tokens, self._wait)
        if not attempts.repeatable:
            await self._connected(_CONNECT_SECONDS if seconds is None else min(_CONNECT_SECONDS, seconds))
        return attempts

    async def _connected(self, seconds: float) -> None:
        """Waits until something can be sent, so that the call need not be tried again. The call itself says what is wrong."""
        with suppress(TimeoutError, BaseError):
            async with asyncio.timeout(seconds):
                await self.channel.channel_ready()


class _Attempts:
    """One call, sent once or several times."""

    def __init__(
        self, asked: ClientCallDetails, seconds: float | None, callee: str, tokens: ServiceTokens, wait: Wait
    ) -> None:
        metadata = Metadata(*(asked.metadata or ()))
        # Two credentials would leave it open whose call it is.
        self._in_a_persons_name = any(key == "authorization" for key, _ in metadata)
        if not self._in_a_persons_name:
            metadata.add("authorization", f"Bearer {tokens.mint(callee)}")
        self._asked = asked._replace(metadata=metadata)  # type: ignore[attr-defined]  # a named tuple at run time
        path: str | bytes = asked.method
        self.repeatable = _repeatable(path.decode() if isinstance(path, bytes) else path)
        self._ends_at = None if seconds is None else _now() + seconds
        self._callee = callee
        self._wait = wait
        self._failures = 0

    @property
    def details(self) -> ClientCallDetails:
        """For the next attempt. Raises DeadlineExceeded when there is no time for one: gRPC might send it nevertheless."""
        left = None if self._ends_at is None else self._ends_at - _now()
        if left is not None and left <= 0:
            raise DeadlineExceeded
        details: ClientCallDetails = self._asked._replace(timeout=left)
        return details

    async def failed(self, error: Exception) -> None:
        """Returns when it is time for another attempt. Raises the error, typed, when there is to be none."""
        typed = self.typed(error)
        self._failures += 1
        again = isinstance(error, AioRpcError) and error.code() is StatusCode.UNAVAILABLE and self.repeatable
        if not again or self._failures == _ATTEMPTS:
            raise typed from error
        wait = self._wait(self._failures)
        if self._ends_at is not None and _now() + wait >= self._ends_at:
            raise typed from error
        await asyncio.sleep(wait)

    def typed(self, error: Exception) -> MeshError:
        if isinstance(error, AioRpcError):
            return from_peer(error, self._callee, in_a_persons_name=self._in_a_persons_name)
        return of_channel(error, self._callee)

    def readable(self, message: Any) -> Any:
        """The message. gRPC logs bytes that are none and hands out None for them."""
        if message is None:
            raise unreadable_answer(self._callee)
        return message


class _Unary(UnaryUnaryClientInterceptor):
    def __init__(self, calls: _Calls) -> None:
        self._calls = calls

    async def intercept_unary_unary(
        self,
        continuation: Callable[[ClientCallDetails, Any], Any],
        client_call_details: ClientCallDetails,
        request: Any,
    ) -> UnaryUnaryCall[Any, Any]:
        wanted, left = client_call_details.timeout or _DEFAULT_SECONDS, deadline.remaining()
        attempts = await self._calls.begin(client_call_details, wanted if left is None else min(wanted, left))
        while True:
            try:
                call: UnaryUnaryCall[Any, Any] = await continuation(attempts.details, request)
                attempts.readable(await call)
            except (AioRpcError, BaseError) as error:
                await attempts.failed(error)
            else:
                return call


class _Streaming(UnaryStreamClientInterceptor):
    def __init__(self, calls: _Calls) -> None:
        self._calls = calls

    async def intercept_unary_stream(
        self,
        continuation: Callable[[ClientCallDetails, Any], Any],
        client_call_details: ClientCallDetails,
        request: Any,
    ) -> AsyncIterator[Any]:
        attempts = await self._calls.begin(client_call_details, client_call_details.timeout)
        while True:
            try:
                call: UnaryStreamCall[Any, Any] = await continuation(attempts.details, request)
                await _begun(call)
            except (AioRpcError, BaseError) as error:
                await attempts.failed(error)
            else:
                return _messages(call, attempts)


async def _begun(call: UnaryStreamCall[Any, Any]) -> None:
    """Returns when the callee begins to answer: from then on it is not asked again. Raises AioRpcError when it refuses at once."""
    try:
        await call.initial_metadata()
        if call.done():
            await call.wait_for_connection()
    except asyncio.CancelledError:
        call.cancel()
        raise


async def _messages(call: UnaryStreamCall[Any, Any], attempts: _Attempts) -> AsyncIterator[Any]:
    try:
        async for message in call:
            yield attempts.readable(message)
    except (AioRpcError, BaseError) as error:
        raise attempts.typed(error) from error


@cache
def _repeatable(path: str) -> bool:
    """Whether the contract lets the method be repeated. Not if it is in no contract that this process has imported."""
    try:
        return contract.linked([path.split("/")[1]])[path].repeatable
    except (KeyError, ContractError):
        return False


def _now() -> float:
    return asyncio.get_running_loop().time()


def _tracing() -> list[ClientInterceptor]:
    """For calls with one answer: the span of a stream that lasts as long as its process would never be sent."""
    interceptors: list[ClientInterceptor] = aio_client_interceptors()  # type: ignore[no-untyped-call]
    return [each for each in interceptors if isinstance(each, UnaryUnaryClientInterceptor)]
