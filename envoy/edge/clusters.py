"""Clusters: one per service, the trace collector, and Envoy itself for the key set."""

from __future__ import annotations

from edge.config import Config, seconds, typed
from edge.settings import Address, Settings

RATE_LIMIT_CLUSTER = "ratelimit"
COLLECTOR_CLUSTER = "collector"
JWKS_CLUSTER = "jwks"
ADMIN_CLUSTER = "admin"

_SOON_MISSED = {"interval": "0.75s", "timeout": "2s"}
"""HTTP/2 keepalive pings to services. gRPC answers from a thread of its own: a missed one means a stopped process or network.

They end the calls in flight within 3 s. Health checks cannot do that, because they would also cut off the calls of a process that
drains. Pings take longer than health checks, so that a retry does not end at another process that has stopped.
"""

_SELDOM = {"interval": "30s", "timeout": "5s"}
"""HTTP/2 keepalive pings to foreign servers, which close connections that ping more often."""


def clusters(settings: Settings) -> list[Config]:
    """Every cluster that the listeners name."""
    services = [_service(name, endpoints, settings) for name, endpoints in settings.services.items()]
    own = [_own(JWKS_CLUSTER, settings.internal, settings)]
    if settings.statistics:
        own.append(_own(ADMIN_CLUSTER, settings.admin, settings))
    return [*services, _collector(settings), *own]


def _service(name: str, endpoints: tuple[Address, ...], settings: Settings) -> Config:
    return {
        **_grpc_cluster(name, endpoints, settings, pings=_SOON_MISSED),
        # By default Envoy ignores health as soon as half of the hosts are unhealthy, and sends calls to those that said no.
        "common_lb_config": {
            "healthy_panic_threshold": {"value": 0},
            # By default what changes within a second of another change takes effect when that second is over. So of two processes
            # that stop at once, the second would get calls until then.
            "update_merge_window": "0s",
        },
        # Envoy keeps one connection per worker thread and host, so every process has to be a host of its own for this to balance.
        "lb_policy": "LEAST_REQUEST",
        "health_checks": [
            {
                # The empty name is the overall health, which a service withdraws before it drains.
                "grpc_health_check": {"service_name": ""},
                # NOT_SERVING takes effect at once. Without an answer, two misses in a row (within 2 s) are needed: a process that
                # is only slow, because it lacks a processor, rarely misses both.
                "timeout": "0.65s",
                "interval": "0.3s",
                "interval_jitter": "0.05s",
                # The interval before the first call; its default of a minute would keep a starting mesh undiscovered.
                "no_traffic_interval": "0.3s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
            }
        ],
        "outlier_detection": {
            # A connection can fail every call while its process is healthy: gRPC's library does so once its HPACK table is broken.
            # Ejecting the host closes its connections, and calls use new ones. It takes many failures in a row and lasts a second
            # at most, because callers can cause failures and must not take the host away from others.
            "consecutive_5xx": 20,
            "enforcing_consecutive_5xx": 100,
            "always_eject_one_host": True,
            "interval": "0.5s",
            "base_ejection_time": "0.5s",
            "max_ejection_time": "0.5s",
            "max_ejection_percent": 50,
            # Count resets together with other failures. Counted apart, each stream that opens would reset their count.
            "split_external_local_origin_errors": False,
            "enforcing_success_rate": 0,
        },
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": 1024,
                    "max_pending_requests": settings.sizes.requests_per_service,
                    "max_requests": settings.sizes.requests_per_service,
                    # A share of the calls in flight bounds the retries, so that they cannot multiply an outage. The minimum is high
                    # because all calls in flight at a process that dies are retried at the same moment.
                    "retry_budget": {"budget_percent": {"value": 50}, "min_retry_concurrency": 100},
                }
            ]
        },
    }


def _collector(settings: Settings) -> Config:
    """The trace collector's cluster. The tracer requires one: without a collector it has no endpoints and fails at once."""
    otlp = settings.tracing.otlp
    return _grpc_cluster(COLLECTOR_CLUSTER, (otlp,) if otlp else (), settings, pings=_SELDOM)


def _own(name: str, address: Address, settings: Settings) -> Config:
    """This very Envoy, through a listener of its own on loopback."""
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": seconds(settings.timeouts.connect_seconds),
        "load_assignment": _load_assignment(name, (address,)),
    }


def _grpc_cluster(name: str, endpoints: tuple[Address, ...], settings: Settings, *, pings: Config) -> Config:
    return {
        "name": name,
        # Also correct for IP addresses, which resolve to themselves.
        "type": "STRICT_DNS" if endpoints else "STATIC",
        "dns_lookup_family": "V4_PREFERRED",
        "connect_timeout": seconds(settings.timeouts.connect_seconds),
        "load_assignment": _load_assignment(name, endpoints),
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
                "extensions.upstreams.http.v3.HttpProtocolOptions",
                explicit_http_config={
                    "http2_protocol_options": {
                        "initial_stream_window_size": 65_536,
                        "initial_connection_window_size": 1_048_576,
                        "connection_keepalive": pings,
                    }
                },
            )
        },
    }


def _load_assignment(name: str, endpoints: tuple[Address, ...]) -> Config:
    hosts = [{"endpoint": {"address": socket_address(endpoint)}} for endpoint in endpoints]
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": hosts}]}


def socket_address(address: Address) -> Config:
    """The address of a TCP socket."""
    return {"socket_address": {"address": address.host, "port_value": address.port}}
