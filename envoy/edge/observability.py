"""Traces and log lines of the edge."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

from edge.authentication import FILTER as JWT_AUTHN
from edge.authentication import PAYLOAD
from edge.clusters import COLLECTOR_CLUSTER
from edge.config import Config, extension, header
from edge.settings import Tracing
from mesh.contract import BOUND_VERBS, Method
from mesh.edge_protocol import RATE_LIMIT_METADATA

_ECS_VERSION = "8.11.0"
FORMER_METHOD = "x-envoy-original-method"
"""Header in which the transcoder keeps a JSON request's original HTTP method; from there on the method is POST."""


def tracing(settings: Tracing) -> Config:
    """The tracing configuration: continues the caller's trace or starts one, and passes it on in `traceparent`.

    Without a collector the trace is not sampled, but its id still joins the log lines of all services.
    """
    return {
        "provider": extension(
            "envoy.tracers.opentelemetry",
            "config.trace.v3.OpenTelemetryConfig",
            service_name="edge",
            grpc_service={"envoy_grpc": {"cluster_name": COLLECTOR_CLUSTER}, "timeout": "1s"},
        ),
        "random_sampling": {"value": _sampling_percent(settings)},
        # Overwritten, because Envoy's own value includes the query, which may hold a resume token or a misplaced password.
        "custom_tags": [
            {"tag": "http.url", "value": "%PATH(NQ:ORIG_OR_PATH)%"},
            {"tag": "http.method", "value": f"%REQ({FORMER_METHOD}?:method)%"},
        ],
        # A span per upstream attempt shows retries and where the time went.
        "spawn_upstream_span": True,
        # The span's name when no route matches.
        "operation": _VERB,
    }


def method_tracing(method: Method, settings: Tracing) -> Config:
    """Names a method's spans: verb and path template for a JSON call, the method's full name for a gRPC call."""
    name = f"{method.service}/{method.name}"
    templates = {binding.verb: binding.template for binding in method.bindings}
    route = _if_json(templates, name)
    traced = _route_tracing(
        _if_json({verb: f"{verb} {template}" for verb, template in templates.items()}, name), route, name, settings
    )
    if any(binding.hidden_below for binding in method.bindings):
        traced["custom_tags"].append(hidden_url(route))
    return traced


def path_tracing(template: str, settings: Tracing) -> Config:
    """Names the span of a path that the edge answers itself: verb and path template."""
    return _route_tracing(f"{_VERB} {template}", template, template, settings)


def hidden_url(instead: str) -> Config:
    """A tag that hides the path of a request, which holds a secret. A route's tag goes before the connection manager's."""
    return {"tag": "http.url", "value": instead}


def _route_tracing(operation: str, route: str, upstream: str, settings: Tracing) -> Config:
    return {
        "operation": operation,
        "upstream_operation": upstream,
        "custom_tags": [{"tag": "http.route", "value": route}],
        # Stated again, because a route's tags replace those of the connection manager.
        "random_sampling": {"numerator": round(_sampling_percent(settings) * 10_000), "denominator": "MILLION"},
    }


def _if_json(by_verb: dict[str, str], otherwise: str) -> str:
    verb = f"request.headers['{FORMER_METHOD}']"
    table = json.dumps(by_verb)
    return f"%CEL('{FORMER_METHOD}' in request.headers && {verb} in {table} ? {table}[{verb}] : '{otherwise}')%"


# HTTP/2 clients may send any text as the method; each would be another operation name.
_VERB = f"%CEL(request.method in {json.dumps((*BOUND_VERBS, 'HEAD', 'OPTIONS'))} ? request.method : 'HTTP')%"


def _sampling_percent(settings: Tracing) -> float:
    return settings.sampling_percent if settings.otlp else 0


def sound_traces(scratch: str) -> list[Config]:
    """Early mutations that remove an invalid `traceparent` (W3C Trace Context, 3.2.2), and a `tracestate` with odd bytes.

    Envoy would start no trace for an invalid one, and each service would start its own, which the client never learns. A mutation
    can remove a header by name only, so a valid value is kept by copying it to the header `scratch` and back.
    """
    sent = "request.headers['traceparent']"
    sound = " && ".join(
        (
            "'traceparent' in request.headers",
            # Two expressions that overlap in a hyphen, because one expression for both exceeds Envoy's limit.
            f"size({sent}) == 55",
            f"{sent}.matches('^00-[0-9a-f]{{32}}-')",
            f"{sent}.matches('-[0-9a-f]{{16}}-[0-9a-f][0-9a-f]$')",
            f"!{sent}.startsWith('00-{'0' * 32}')",
            f"!{sent}.contains('-{'0' * 16}-')",
        )
    )
    state = "request.headers['tracestate']"
    return [
        *_kept_if(sound, "traceparent", scratch),
        *_kept_if(f"'tracestate' in request.headers && {state}.matches('^[ -~]*$')", "tracestate", scratch),
    ]


def _kept_if(condition: str, name: str, scratch: str) -> list[Config]:
    return [
        {"append": header(scratch, f"%CEL({condition} ? request.headers['{name}'] : '')%")},
        {"remove": name},
        {"append": header(name, f"%REQ({scratch})%")},
        {"remove": scratch},
    ]


def access_log(hidden_below: Sequence[str]) -> list[Config]:
    """The access log: one ECS line per request on stdout, without tokens and query strings, which hold resume tokens.

    Of a path that begins as one of `hidden_below` the line shows that beginning only, because a secret follows. Each of these has a
    logger of its own, as a format cannot choose between two texts.
    """
    if not hidden_below:
        return [_lines(_PATH, None)]
    others = [_path_begins(name, hidden_below, invert_match=True) for name in _PATH_HEADERS]
    return [
        _lines(_PATH, {"and_filter": {"filters": others}}),
        *(
            _lines(f"{prefix}...", {"or_filter": {"filters": [_path_begins(name, [prefix]) for name in _PATH_HEADERS]}})
            for prefix in hidden_below
        ),
    ]


_PATH = "%PATH(NQ:ORIG_OR_PATH)%"
_PATH_HEADERS = (":path", "x-envoy-original-path")


def _path_begins(name: str, prefixes: Iterable[str], *, invert_match: bool = False) -> Config:
    """Matches on the path in a header. A path that the edge refused before it was normalised counts as well."""
    begins = "|".join(re.escape(prefix.strip("/")) for prefix in prefixes)
    matcher: Config = {
        "name": name,
        "string_match": {"safe_regex": {"regex": f"(?is)[./\\\\]*({begins})([/\\\\]|%2f|%5c).*"}},
        "treat_missing_header_as_empty": True,
    }
    return {"header_filter": {"header": {**matcher, **({"invert_match": True} if invert_match else {})}}}


def _lines(path: str, filter_: Config | None) -> Config:
    return {
        **extension(
            "envoy.access_loggers.stdout",
            "extensions.access_loggers.stream.v3.StdoutAccessLog",
            log_format={
                "omit_empty_values": True,
                "json_format": {
                    "@timestamp": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
                    "log.level": "info",
                    "message": f"%REQ(x-envoy-original-method?:method)% {path} %RESPONSE_CODE%",
                    "ecs": {"version": _ECS_VERSION},
                    "event": {"dataset": "edge.access", "duration": "%COMMON_DURATION(DS_RX_BEG:DS_TX_END:ns)%"},
                    "http": {
                        "request": {
                            "id": "%REQ(x-request-id)%",
                            "method": "%REQ(x-envoy-original-method?:method)%",
                            "bytes": "%BYTES_RECEIVED%",
                        },
                        "response": {"status_code": "%RESPONSE_CODE%", "bytes": "%BYTES_SENT%"},
                        "version": "%PROTOCOL%",
                    },
                    "url": {"path": path},
                    "rpc": {"method": "%ROUTE_NAME%", "grpc_status": "%GRPC_STATUS%"},
                    "client": {"ip": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"},
                    "user": {"id": f"%DYNAMIC_METADATA({JWT_AUTHN}:{PAYLOAD}:sub)%"},
                    "rate_limit": {
                        "rule": f"%DYNAMIC_METADATA({RATE_LIMIT_METADATA}:rule)%",
                        "verdict": f"%DYNAMIC_METADATA({RATE_LIMIT_METADATA}:verdict)%",
                    },
                    "user_agent": {"original": "%REQ(user-agent)%"},
                    "trace": {"id": "%TRACE_ID%"},
                    "service": {"name": "edge"},
                    "envoy": {
                        "response_flags": "%RESPONSE_FLAGS%",
                        "response_code_details": "%RESPONSE_CODE_DETAILS%",
                        "upstream_host": "%UPSTREAM_HOST%",
                    },
                },
            },
        ),
        **({"filter": filter_} if filter_ else {}),
    }


def application_log() -> Config:
    """The format of Envoy's own messages: ECS lines on stderr."""
    return {
        "log_format": {
            "json_format": {
                "@timestamp": "%Y-%m-%dT%T.%e%z",
                "log.level": "%l",
                "message": "%j",
                "ecs": {"version": _ECS_VERSION},
                "log.logger": "%n",
                "service": {"name": "edge"},
            }
        }
    }
