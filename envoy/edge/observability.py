"""What an operator sees of the edge: traces and log lines."""

from __future__ import annotations

import json

from edge.authentication import FILTER as JWT_AUTHN
from edge.authentication import PAYLOAD
from edge.clusters import COLLECTOR_CLUSTER
from edge.config import Config, extension, header
from edge.settings import Tracing
from mesh.contract import BOUND_VERBS, Method

_ECS_VERSION = "8.11.0"
FORMER_METHOD = "x-envoy-original-method"
"""Where the transcoder notes the verb of a JSON request, whose method is POST from then on."""


def tracing(settings: Tracing) -> Config:
    """Starts a trace or continues the caller's, and passes it on in `traceparent`.

    Without a collector nothing is recorded, and `traceparent` says so; its trace id still joins the log lines of all services.
    """
    return {
        "provider": extension(
            "envoy.tracers.opentelemetry",
            "config.trace.v3.OpenTelemetryConfig",
            service_name="edge",
            grpc_service={"envoy_grpc": {"cluster_name": COLLECTOR_CLUSTER}, "timeout": "1s"},
        ),
        "random_sampling": {"value": _sampling_percent(settings)},
        # Envoy's own value has the query too, which may hold a resume token, or a password that a client put there by mistake.
        "custom_tags": [
            {"tag": "http.url", "value": "%PATH(NQ:ORIG_OR_PATH)%"},
            {"tag": "http.method", "value": f"%REQ({FORMER_METHOD}?:method)%"},
        ],
        # A span per try at an upstream shows retries and where the time went.
        "spawn_upstream_span": True,
        # What no route knows.
        "operation": _VERB,
    }


def method_tracing(method: Method, settings: Tracing) -> Config:
    """A method's spans: by verb and template when it was called as JSON, else by its name, as everywhere behind the edge."""
    name = f"{method.service}/{method.name}"
    templates = {binding.verb: binding.template for binding in method.bindings}
    return _route_tracing(
        _if_json({verb: f"{verb} {template}" for verb, template in templates.items()}, name),
        _if_json(templates, name),
        name,
        settings,
    )


def path_tracing(template: str, settings: Tracing) -> Config:
    """The span of what the edge answers itself at a path: by verb and template."""
    return _route_tracing(f"{_VERB} {template}", template, template, settings)


def _route_tracing(operation: str, route: str, upstream: str, settings: Tracing) -> Config:
    return {
        "operation": operation,
        "upstream_operation": upstream,
        "custom_tags": [{"tag": "http.route", "value": route}],
        # A route's own would be all otherwise.
        "random_sampling": {"numerator": round(_sampling_percent(settings) * 10_000), "denominator": "MILLION"},
    }


def _if_json(by_verb: dict[str, str], otherwise: str) -> str:
    verb = f"request.headers['{FORMER_METHOD}']"
    table = json.dumps(by_verb)
    return f"%CEL('{FORMER_METHOD}' in request.headers && {verb} in {table} ? {table}[{verb}] : '{otherwise}')%"


# Clients of HTTP/2 may call a method anything, and each name would be another operation.
_VERB = f"%CEL(request.method in {json.dumps((*BOUND_VERBS, 'HEAD', 'OPTIONS'))} ? request.method : 'HTTP')%"


def _sampling_percent(settings: Tracing) -> float:
    return settings.sampling_percent if settings.otlp else 0


def sound_traces(scratch: str) -> list[Config]:
    """Mutations that take off a `traceparent` that is none (W3C Trace Context, 3.2.2), before tracing begins, and odd bytes.

    Envoy would start no trace at all for it, and each service one of its own that the client never learns. Of `tracestate`, Envoy
    writes later what it read here. A header can be removed by its name only, so a sound one goes by way of the header `scratch`.
    """
    sent = "request.headers['traceparent']"
    sound = " && ".join(
        (
            "'traceparent' in request.headers",
            # Two expressions that overlap in a hyphen, as Envoy allows none as large as both.
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


def access_log() -> list[Config]:
    """One ECS line per request on stdout. Neither tokens nor query strings are in it: a resume token is a query parameter."""
    return [
        extension(
            "envoy.access_loggers.stdout",
            "extensions.access_loggers.stream.v3.StdoutAccessLog",
            log_format={
                "omit_empty_values": True,
                "json_format": {
                    "@timestamp": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
                    "log.level": "info",
                    "message": "%REQ(x-envoy-original-method?:method)% %PATH(NQ:ORIG_OR_PATH)% %RESPONSE_CODE%",
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
                    "url": {"path": "%PATH(NQ:ORIG_OR_PATH)%"},
                    "rpc": {"method": "%ROUTE_NAME%", "grpc_status": "%GRPC_STATUS%"},
                    "client": {"ip": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"},
                    "user": {"id": f"%DYNAMIC_METADATA({JWT_AUTHN}:{PAYLOAD}:sub)%"},
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
        )
    ]


def application_log() -> Config:
    """Envoy's own messages, as ECS lines on stderr."""
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
