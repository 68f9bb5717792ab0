"""Opens a channel to the edge, encrypted unless it stays on this machine."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping, Sequence

import grpc
from grpc.aio import Channel, ClientInterceptor
from storymesh.methods import Method


def open_channel(
    target: str,
    methods: Mapping[str, Method],
    interceptors: Sequence[ClientInterceptor],
    *,
    tls: bool,
    root_certificates: bytes | None,
    user_agent: str,
) -> Channel:
    options = [
        ("grpc.service_config", json.dumps(service_config(methods))),
        ("grpc.primary_user_agent", user_agent),
        ("grpc.keepalive_time_ms", 30_000),
        # gRPC would send even loopback calls through a proxy that the environment names for the web.
        ("grpc.enable_http_proxy", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]
    if tls:
        credentials = grpc.ssl_channel_credentials(root_certificates)
        return grpc.aio.secure_channel(target, credentials, options=options, interceptors=interceptors)
    return grpc.aio.insecure_channel(target, options=options, interceptors=interceptors)


def service_config(methods: Mapping[str, Method]) -> dict[str, object]:
    """The gRPC service config by which the channel retries unavailable reads (gRFC A6).

    UNAVAILABLE does not exclude that the call was executed, so only methods without side effects are retried.
    """
    reads = [path.split("/") for path, method in methods.items() if method.idempotency == "NO_SIDE_EFFECTS"]
    names = [{"service": service, "method": method} for _, service, method in reads]
    return {
        "methodConfig": [
            {
                "name": names,
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


def stays_here(target: str) -> bool:
    """Whether the target is on this machine, so that a plain-text connection crosses no network."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    host = target.rpartition("/")[2].rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
