"""Rate limits at the edge: what the limiter is told about a call, and what happens when it does not answer.

Each limited call sends the descriptor `(class, client_ip)`, and a signed-in one also `(class, user)`. The class comes from the
method's policy. An IPv4 client counts by its address, an IPv6 client by its /64, which is what one customer commonly gets; both
in CIDR form, such as `192.0.2.7/32` and `2001:db8:1:2::/64`.
"""

from __future__ import annotations

from edge.authentication import FILTER as JWT_AUTHN
from edge.authentication import PAYLOAD
from edge.clusters import RATE_LIMIT_CLUSTER
from edge.config import Config, always, extension, header, seconds, typed
from edge.settings import OnFailure, RateLimit
from mesh.contract import Access, Method
from mesh.edge_protocol import CLIENT_ADDRESS_HEADER, EDGE_HEADER_PREFIX

CLIENT_NETWORK_HEADER = f"{EDGE_HEADER_PREFIX}client-ip"
"""Carries the client's network between the edge's own filters; Envoy's action for addresses cannot name the descriptor's key."""

_UNMAPPED = "::/64"
"""The network of every IPv4 address that a proxy in front wrote as IPv6 (::ffff:192.0.2.7): all of them would count as one."""

LOCAL_FILTER = "envoy.filters.http.local_ratelimit"

# Whether an unanswered check denies is a property of a filter, not of a route. So there is one filter for each answer, and a
# route's descriptors carry the stage of the one that is to send them.
_STAGES = {OnFailure.ALLOW: 0, OnFailure.DENY: 1}


def rate_limits(method: Method, settings: RateLimit) -> list[Config]:
    """The descriptors of a call. One that cannot be filled in is left out, so the user's is sent only with a verified token."""
    stage = _STAGES[_on_failure(method.rate_limit_class, settings)]
    by_class: Config = {"generic_key": {"descriptor_key": "class", "descriptor_value": method.rate_limit_class}}
    by_address: Config = {
        "request_headers": {"header_name": CLIENT_NETWORK_HEADER, "descriptor_key": "client_ip"},
    }
    by_user: Config = {
        "metadata": {
            "descriptor_key": "user",
            "metadata_key": {"key": JWT_AUTHN, "path": [{"key": PAYLOAD}, {"key": "sub"}]},
            "source": "DYNAMIC",
        }
    }
    descriptors = [[by_class, by_address]]
    if method.access is not Access.PUBLIC:
        descriptors.append([by_class, by_user])
    return [{"stage": stage, "actions": actions} for actions in descriptors]


def client_addresses() -> list[Config]:
    """The mutations that fill both headers, once the address is known. They replace whatever a client sent under these names."""
    address, network = (f"request.headers['{name}']" for name in (CLIENT_ADDRESS_HEADER, CLIENT_NETWORK_HEADER))
    return [
        {"append": header(CLIENT_ADDRESS_HEADER, "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%")},
        # The prefix length is for IPv6; it is cut to 32 for IPv4.
        {"append": header(CLIENT_NETWORK_HEADER, "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(64)%")},
        {"append": header(CLIENT_NETWORK_HEADER, f"%CEL({network} == '{_UNMAPPED}' ? {address} : {network})%")},
    ]


def global_limits(settings: RateLimit) -> list[Config]:
    """The filters that ask the limiter, one per answer to its absence."""
    return [
        extension(
            f"envoy.filters.http.ratelimit.{on_failure.value}",
            "extensions.filters.http.ratelimit.v3.RateLimit",
            domain=settings.domain,
            stage=stage,
            # Stated, because the default of 20 ms lets calls pass under load, and is silent about it.
            timeout=seconds(settings.timeout_seconds),
            failure_mode_deny=on_failure is OnFailure.DENY,
            status_on_error={"code": "ServiceUnavailable"},
            # UNAVAILABLE, the default, invites gRPC clients to retry at once.
            rate_limited_as_resource_exhausted=True,
            enable_x_ratelimit_headers="DRAFT_VERSION_03",
            enable_retry_after_header=True,
            disable_x_envoy_ratelimited_header=True,
            rate_limit_service={
                "transport_api_version": "V3",
                "grpc_service": {"envoy_grpc": {"cluster_name": RATE_LIMIT_CLUSTER}},
            },
        )
        for on_failure, stage in _STAGES.items()
    ]


def local_limit(settings: RateLimit) -> Config:
    """The coarse guard in front of everything that costs something, over all clients together."""
    bucket = settings.local
    return extension(
        LOCAL_FILTER,
        "extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        stat_prefix="edge",
        token_bucket={
            "max_tokens": bucket.burst,
            "tokens_per_fill": max(1, bucket.requests_per_second // 10),
            "fill_interval": "0.1s",
        },
        filter_enabled=always(),
        filter_enforced=always(),
        rate_limited_as_resource_exhausted=True,
        response_headers_to_add=[{"header": {"key": "retry-after", "value": "1"}}],
    )


def without_local_limit() -> Config:
    """Per-route configuration of the liveness probe, which a flood must not turn into a restart: neither enabled nor enforced."""
    return {
        LOCAL_FILTER: typed(
            "extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
            stat_prefix="unlimited",
            token_bucket={"max_tokens": 1, "fill_interval": "1s"},
        )
    }


def _on_failure(rate_limit_class: str, settings: RateLimit) -> OnFailure:
    return settings.on_failure.get(rate_limit_class, OnFailure.DENY)
