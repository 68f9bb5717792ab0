"""Rate limits at the edge: which descriptors a call sends to the limiter, and what happens when the limiter does not answer.

Each limited call sends the descriptor `(class, client_ip)`, and a signed-in one also `(class, user)`. The class comes from the
method's policy. An IPv4 client is counted by its address, an IPv6 client by its /64, which one customer commonly gets; both
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
"""Carries the client's network between the edge's filters: Envoy's action for addresses cannot name the descriptor's key."""

_UNMAPPED = "::/64"
"""The /64 of all IPv4-mapped addresses (::ffff:192.0.2.7), which would share a bucket. They are counted by their IPv4 address."""

LOCAL_FILTER = "envoy.filters.http.local_ratelimit"

# Whether an unanswered check denies (fail closed) is a property of a filter, not of a route. So there is a filter for each, and a
# route's descriptors carry the stage of the filter that sends them.
_STAGES = {OnFailure.ALLOW: 0, OnFailure.DENY: 1}


def rate_limits(method: Method, settings: RateLimit) -> list[Config]:
    """The descriptors of a call. Envoy leaves out one that it cannot fill in, so the user's is sent only with a verified token."""
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
    """The header mutations that set the client's address and network. They replace values that a client sent under these names."""
    address, network = (f"request.headers['{name}']" for name in (CLIENT_ADDRESS_HEADER, CLIENT_NETWORK_HEADER))
    return [
        {"append": header(CLIENT_ADDRESS_HEADER, "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%")},
        # The prefix length for IPv6; Envoy cuts it to 32 for IPv4.
        {"append": header(CLIENT_NETWORK_HEADER, "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(64)%")},
        {"append": header(CLIENT_NETWORK_HEADER, f"%CEL({network} == '{_UNMAPPED}' ? {address} : {network})%")},
    ]


def global_limits(settings: RateLimit) -> list[Config]:
    """The filters that ask the limiter: one fails open, one fails closed."""
    return [
        extension(
            f"envoy.filters.http.ratelimit.{on_failure.value}",
            "extensions.filters.http.ratelimit.v3.RateLimit",
            domain=settings.domain,
            stage=stage,
            # Stated, because the default of 20 ms silently lets calls pass under load.
            timeout=seconds(settings.timeout_seconds),
            failure_mode_deny=on_failure is OnFailure.DENY,
            status_on_error={"code": "ServiceUnavailable"},
            # Stated, because the default UNAVAILABLE makes gRPC clients retry at once.
            rate_limited_as_resource_exhausted=True,
            enable_x_ratelimit_headers="DRAFT_VERSION_03",
            # The limiter writes it, and leaves it out where no wait helps; Envoy would write one even then.
            enable_retry_after_header=False,
            disable_x_envoy_ratelimited_header=True,
            rate_limit_service={
                "transport_api_version": "V3",
                "grpc_service": {"envoy_grpc": {"cluster_name": RATE_LIMIT_CLUSTER}},
            },
        )
        for on_failure, stage in _STAGES.items()
    ]


def local_limit(settings: RateLimit) -> Config:
    """A local token bucket over all clients together, in front of every filter that costs processor time."""
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
    """Per-route configuration that switches the local limit off, for the liveness probe: a flood must not lead to a restart."""
    return {
        LOCAL_FILTER: typed(
            "extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
            stat_prefix="unlimited",
            token_bucket={"max_tokens": 1, "fill_interval": "1s"},
        )
    }


def _on_failure(rate_limit_class: str, settings: RateLimit) -> OnFailure:
    return settings.on_failure.get(rate_limit_class, OnFailure.DENY)
