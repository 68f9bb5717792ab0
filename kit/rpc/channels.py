"""Channels to other services of the mesh, for peers.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import grpc
from grpc.aio import (
    Channel,
    ClientCallDetails,
    ClientInterceptor,
    Metadata,
    UnaryStreamClientInterceptor,
    UnaryUnaryClientInterceptor,
)
from opentelemetry.instrumentation.grpc import aio_client_interceptors

from kit.identity.tokens import ServiceTokens

from . import deadline

_DEFAULT_SECONDS = 5.0

# A callee that is away or restarting is tried again by gRPC itself (gRFC A6). UNAVAILABLE may also come after the callee did
# its work, so every method that is called through here must bear repetition.
_SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)


class _Credentials(UnaryUnaryClientInterceptor):
    """Adds the service's token for this callee, unless the call brings a person's own, and the time that is left."""

    def __init__(self, tokens: ServiceTokens, callee: str) -> None:
        self._tokens = tokens
        self._callee = callee

    async def intercept_unary_unary(
        self,
        continuation: Callable[[ClientCallDetails, Any], Any],
        client_call_details: ClientCallDetails,
        request: Any,
    ) -> Any:
        wanted, left = client_call_details.timeout or _DEFAULT_SECONDS, deadline.remaining()
        details = client_call_details._replace(  # type: ignore[attr-defined]  # a named tuple at run time
            metadata=_with_token(client_call_details, self._tokens.mint(self._callee)),
            timeout=wanted if left is None else min(wanted, left),
        )
        return await continuation(details, request)


class _StreamCredentials(UnaryStreamClientInterceptor):
    """Adds the service's token for this callee. A stream ends when either side wants it to, so it has no deadline."""

    def __init__(self, tokens: ServiceTokens, callee: str) -> None:
        self._tokens = tokens
        self._callee = callee

    async def intercept_unary_stream(
        self,
        continuation: Callable[[ClientCallDetails, Any], Any],
        client_call_details: ClientCallDetails,
        request: Any,
    ) -> Any:
        details = client_call_details._replace(  # type: ignore[attr-defined]  # a named tuple at run time
            metadata=_with_token(client_call_details, self._tokens.mint(self._callee))
        )
        return await continuation(details, request)


def _with_token(details: ClientCallDetails, token: str) -> Metadata:
    metadata = Metadata(*(details.metadata or ()))
    if any(key == "authorization" for key, _ in metadata):
        # Made in a person's name: two credentials would leave it open whose call it is.
        return metadata
    metadata.add("authorization", f"Bearer {token}")
    return metadata


def _tracing() -> list[ClientInterceptor]:
    """For calls with one answer: the span of a stream that lasts as long as its process would never be sent."""
    interceptors: list[ClientInterceptor] = aio_client_interceptors()  # type: ignore[no-untyped-call]
    return [each for each in interceptors if isinstance(each, UnaryUnaryClientInterceptor)]


def connect(target: str, callee: str, tokens: ServiceTokens) -> Channel:
    """A channel that reconnects by itself; the replicas behind the name share the load."""
    return grpc.aio.insecure_channel(
        target,
        options=[
            ("grpc.service_config", _SERVICE_CONFIG),
            ("grpc.lb_policy_name", "round_robin"),
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
        interceptors=[*_tracing(), _Credentials(tokens, callee), _StreamCredentials(tokens, callee)],
    )
