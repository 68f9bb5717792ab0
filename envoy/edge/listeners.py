"""The listeners: the public port, one on loopback through which Envoy fetches the key set, and one for statistics."""

from __future__ import annotations

from edge import cors, quotas
from edge.authentication import JWKS_METHOD, jwt_authn
from edge.bodies import strict_bodies
from edge.clusters import ADMIN_CLUSTER, socket_address
from edge.config import Config, extension, header, seconds
from edge.limits import client_addresses, global_limits, local_limit
from edge.observability import access_log, sound_traces, tracing
from edge.replies import local_replies
from edge.requests import judged, without_trailers
from edge.routes import route_configuration
from edge.scripts import scripts
from edge.settings import Address, Cors, Settings
from edge.sizes import whole_requests
from edge.statuses import explained
from edge.transcoding import transcoder
from mesh.contract import Contract
from mesh.edge_protocol import EDGE_HEADER_PREFIX

_CONNECTION_BUFFER = 32_768

_GRPC_WEB = (
    "%CEL('grpc-status' in response.headers && 'content-type' in request.headers"
    " && request.headers['content-type'].startsWith('application/grpc-web') ? 'application/grpc-web+proto' : '')%"
)
"""The content type of a refusal that is sent before the gRPC-Web filter has seen the request; empty for other answers."""


def public(settings: Settings, contract: Contract) -> Config:
    """The public listener: HTTP/1.1 and HTTP/2 without TLS on one port, told apart by their first bytes."""
    return {
        "name": "public",
        "address": socket_address(settings.listen),
        "per_connection_buffer_limit_bytes": _CONNECTION_BUFFER,
        "filter_chains": [{"filters": [_connection_manager(settings, contract)]}],
    }


def internal(settings: Settings, contract: Contract) -> Config:
    """The internal listener, which turns jwt_authn's GET of the key set into a call to auth.

    On the public listener the request would count against its callers' limits. Envoy's internal listeners without a socket do not
    work, because the main thread fetches keys and cannot connect to them.
    """
    service = JWKS_METHOD.split("/")[1]
    auth = service.split(".")[1]
    # With a fixed authority, as on the public listener: what a caller writes there may be none, and the service resets such calls.
    action = {"cluster": auth, "timeout": "2s", "host_rewrite_literal": auth}
    route = {"match": {"path": JWKS_METHOD}, "route": action}
    manager = extension(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="internal",
        route_config={
            "name": "internal",
            "virtual_hosts": [{"name": "internal", "domains": ["*"], "routes": [route]}],
        },
        # The request filter stands here too, because this listener shares the connection to auth with all calls.
        http_filters=[judged(contract), transcoder(settings.files.contract, (service,), settings.sizes), _router()],
    )
    return {
        "name": "internal",
        "address": socket_address(settings.internal),
        # Without exclusive use of the port, another Envoy bound to it by accident would answer with its own keys.
        "enable_reuse_port": False,
        "ignore_global_conn_limit": True,
        "filter_chains": [{"filters": [manager]}],
    }


def statistics(address: Address) -> Config:
    """Shows Prometheus what the admin interface has counted. That interface can stop the process, so only this path leads to it."""
    path = "/stats/prometheus"
    route = {
        "match": {"path": path, "headers": [{"name": ":method", "string_match": {"exact": "GET"}}]},
        "route": {"cluster": ADMIN_CLUSTER, "timeout": "10s", "prefix_rewrite": path},
    }
    manager = extension(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="statistics",
        # Before the route is chosen, so that no other spelling of another path is taken for this one.
        normalize_path=True,
        request_timeout="10s",
        request_headers_timeout="5s",
        common_http_protocol_options={"idle_timeout": "120s"},
        route_config={
            "name": "statistics",
            "virtual_hosts": [{"name": "statistics", "domains": ["*"], "routes": [route]}],
        },
        http_filters=[_router()],
    )
    return {
        "name": "statistics",
        "address": socket_address(address),
        "enable_reuse_port": False,
        # A flood at the public port must not blind the operator.
        "ignore_global_conn_limit": True,
        "per_connection_buffer_limit_bytes": _CONNECTION_BUFFER,
        "filter_chains": [{"filters": [manager]}],
    }


def _connection_manager(settings: Settings, contract: Contract) -> Config:
    timeouts, sizes = settings.timeouts, settings.sizes
    return extension(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="edge",
        codec_type="AUTO",
        server_name="storymesh",
        # The client's address is the peer's; x-forwarded-for counts only as far as trusted proxies have appended to it.
        use_remote_address=True,
        xff_num_trusted_hops=settings.trusted_proxies,
        internal_address_config={"unix_sockets": False},
        early_header_mutation_extensions=[_believable_headers()],
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action="REJECT_REQUEST",
        max_request_headers_kb=sizes.request_headers_kb,
        common_http_protocol_options={
            "idle_timeout": seconds(timeouts.connection_idle_seconds),
            "headers_with_underscores_action": "REJECT_REQUEST",
            "max_headers_count": 100,
        },
        http2_protocol_options={
            # A malformed request ends its own stream (RFC 9113, 8.1.1), not the connection, which others may share.
            "override_stream_error_on_invalid_http_message": True,
            "max_concurrent_streams": sizes.streams_per_connection,
            "initial_stream_window_size": 65_536,
            "initial_connection_window_size": 1_048_576,
        },
        request_headers_timeout=seconds(timeouts.request_headers_seconds),
        # Every request of the contract is one message, so a body that arrives slowly is an attack (Slowloris), not a stream.
        request_timeout=seconds(timeouts.unary_seconds),
        stream_idle_timeout=seconds(timeouts.stream_idle_seconds),
        drain_timeout="5s",
        always_set_request_id_in_response=True,
        tracing=tracing(settings.tracing),
        access_log=access_log(contract.hidden_below),
        local_reply_config=local_replies(settings.cors),
        route_config=route_configuration(settings, contract),
        http_filters=_filters(settings, contract),
    )


def _filters(settings: Settings, contract: Contract) -> list[Config]:
    """The HTTP filters in order. Filters that depend on the method stand behind the transcoder, because it finds the method."""
    return [
        judged(contract),
        _headers(settings.cors),
        extension("envoy.filters.http.grpc_web", "extensions.filters.http.grpc_web.v3.GrpcWeb"),
        local_limit(settings.rate_limit),
        whole_requests(settings.sizes),
        strict_bodies(contract),
        scripts(),
        transcoder(settings.files.contract, contract.transcoded_services, settings.sizes),
        jwt_authn(
            settings.authentication,
            contract,
            subject_header=quotas.USER_HEADER if settings.rate_limit.quota_classes else "",
        ),
        *quotas.filters(contract, settings.rate_limit),
        *global_limits(settings.rate_limit),
        explained(),
        _router(),
    ]


def _believable_headers() -> Config:
    """Early header mutations: remove headers that only proxies and services may set, and invalid traceparents."""
    return extension(
        "envoy.http.early_header_mutation.header_mutation",
        "extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
        mutations=[
            *({"remove_on_match": {"key_matcher": {"prefix": prefix}}} for prefix in ("x-envoy-", EDGE_HEADER_PREFIX)),
            *({"remove": name} for name in ("forwarded", "x-real-ip", "x-client-ip", "x-user-id")),
            *sound_traces(f"{EDGE_HEADER_PREFIX}traceparent"),
        ],
    )


def _headers(settings: Cors) -> Config:
    """The first filter: sets headers for the filters behind it and, as the last on the way back, those of every answer."""
    return extension(
        "envoy.filters.http.header_mutation",
        "extensions.filters.http.header_mutation.v3.HeaderMutation",
        mutations={
            "request_mutations": client_addresses(),
            "request_trailers_mutations": without_trailers(),
            "response_mutations": [
                {"append": header("x-trace-id", "%TRACE_ID%")},
                {"append": header("x-content-type-options", "nosniff")},
                {"append": header("content-type", _GRPC_WEB, action="ADD_IF_ABSENT")},
                # Answers hold tokens and private stories, so no cache may keep them.
                {"append": header("cache-control", "no-store", action="ADD_IF_ABSENT")},
                *({"append": each} for each in cors.on_every_answer(settings)),
                {"remove_on_match": {"key_matcher": {"prefix": EDGE_HEADER_PREFIX}}},
            ],
        },
    )


def _router() -> Config:
    return extension(
        "envoy.filters.http.router", "extensions.filters.http.router.v3.Router", suppress_envoy_headers=True
    )
