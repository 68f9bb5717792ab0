"""Where Envoy sends things: one cluster per service, the collector, and itself for the key set."""

from __future__ import annotations

from edge.config import Config, seconds, typed
from edge.settings import Address, Settings

RATE_LIMIT_CLUSTER = "ratelimit"
COLLECTOR_CLUSTER = "collector"
JWKS_CLUSTER = "jwks"
ADMIN_CLUSTER = "admin"

_SOON_MISSED = {"interval": "0.75s", "timeout": "2s"}
"""HTTP/2 pings, which gRPC answers from a thread of its own: unanswered, the process stands still or the network is cut.

They end what is in flight there, within 3 s; health checks cannot do that without also cutting off the calls of a process that
drains. They take longer than health checks do, so that what is tried again does not end at another process that stands still.
"""

_SELDOM = {"interval": "30s", "timeout": "5s"}
"""For foreign servers, which hang up on whoever pings more often."""


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
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        # Envoy keeps one connection per worker thread and host, so every process has to be a host of its own for this to balance.
        "lb_policy": "LEAST_REQUEST",
        "health_checks": [
            {
                # The overall health, which a service takes back before it drains.
                "grpc_health_check": {"service_name": ""},
                # One that answers NOT_SERVING gets no more calls at once. Of one that does not answer, two misses in a row say that
                # it stands still, within 2 s: a process that is only slow, for want of a processor, rarely misses both.
                "timeout": "0.65s",
                "interval": "0.3s",
                "interval_jitter": "0.05s",
                # Before the first call too: the default of a minute would leave a mesh that is just starting undiscovered.
                "no_traffic_interval": "0.3s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
            }
        ],
        "outlier_detection": {
            # A connection may fail every call while its process is well: gRPC's library does so once its HPACK table is broken. An
            # ejected host's connections are given up, and calls go over new ones. It takes many failures in a row, and the host is
            # back after a second at most, because callers can bring failures about and must not take it away from others.
            "consecutive_5xx": 20,
            "enforcing_consecutive_5xx": 100,
            "always_eject_one_host": True,
            "interval": "0.5s",
            "base_ejection_time": "0.5s",
            "max_ejection_time": "0.5s",
            "max_ejection_percent": 50,
            # Resets count with the others. Split off, their count would begin anew with each stream that opens.
            "split_external_local_origin_errors": False,
            "enforcing_success_rate": 0,
        },
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": 1024,
                    "max_pending_requests": settings.sizes.requests_per_service,
                    "max_requests": settings.sizes.requests_per_service,
                    # Retries are bounded by what is in flight, so that they cannot multiply an outage; yet all that was in
                    # flight at a process that dies is tried again at the same moment.
                    "retry_budget": {"budget_percent": {"value": 50}, "min_retry_concurrency": 100},
                }
            ]
        },
    }


def _collector(settings: Settings) -> Config:
    """The trace collector. Without one it has no endpoints: the tracer insists on a cluster, and this one refuses at once."""
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
        # Also right for plain addresses, which then simply resolve to themselves.
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
    """An address of a real socket."""
    return {"socket_address": {"address": address.host, "port_value": address.port}}
