"""Routes: one per exposed method, the documents that Envoy serves itself, and refusals with the right status for the rest.

A JSON request is routed twice. First by its URL, where only documents and refusals can match; then, after the transcoder, by the
path of its gRPC method, where native gRPC arrives too. A path that neither step knows ends in the last route, a 404.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from edge.authentication import without_token
from edge.config import Config, header, seconds, typed
from edge.contract import JWKS_METHOD, Binding, Contract, Method
from edge.limits import CLIENT_ADDRESS_HEADER, INTERNAL_PREFIX, rate_limits, without_local_limit
from edge.settings import Cors, Settings
from edge.transcoding import without_transcoding

# Failures in which the service has not seen the request, so that repeating any method is safe.
_NEVER_ARRIVED = "connect-failure,refused-stream,reset-before-request"
# Also failures of which nobody knows how far the call came: for methods without side effects only.
_REPEATABLE = f"{_NEVER_ARRIVED},reset,unavailable"

_JSON = r"application/json[ \t]*(;.*)?"
_LARGEST_DOCUMENT = 1_048_576


def route_configuration(settings: Settings, contract: Contract) -> Config:
    """The routes of the public listener."""
    return {
        "name": "edge",
        "max_direct_response_body_size_bytes": _LARGEST_DOCUMENT,
        "virtual_hosts": [
            {
                "name": "edge",
                "domains": ["*"],
                "routes": [
                    *(_method(method, settings) for method in contract.exposed),
                    *_documents(settings),
                    *_refusals(contract),
                    _unknown(),
                ],
                "typed_per_filter_config": {"envoy.filters.http.cors": _cors(settings.cors)},
            }
        ],
    }


def _method(method: Method, settings: Settings) -> Config:
    timeouts = settings.timeouts
    deadline: list[Config] = []
    if method.streams:
        limits = {
            # The whole-answer timeout would cut the stream; the time between two messages is what matters.
            "timeout": "0s",
            "idle_timeout": seconds(timeouts.stream_idle_seconds),
            "max_stream_duration": {
                "max_stream_duration": seconds(timeouts.stream_seconds),
                "grpc_timeout_header_max": seconds(timeouts.stream_seconds),
            },
        }
    else:
        # The service learns how long the edge will wait, so that it can stop when nobody is waiting any more.
        deadline = [header("grpc-timeout", f"{timeouts.unary_seconds * 1000:.0f}m", action="ADD_IF_ABSENT")]
        limits = {
            "timeout": seconds(timeouts.unary_seconds),
            "max_stream_duration": {"grpc_timeout_header_max": seconds(timeouts.unary_seconds)},
        }
    route: Config = {
        "name": f"{method.service}/{method.name}",
        "match": {"path": method.path},
        "route": {
            "cluster": method.area,
            **limits,
            "retry_policy": _retries(method),
            "rate_limits": rate_limits(method, settings.rate_limit),
        },
        "request_headers_to_add": deadline,
        "request_headers_to_remove": [CLIENT_ADDRESS_HEADER],
    }
    if method.path == JWKS_METHOD:
        age = f"public, max-age={settings.authentication.keys_cache_seconds:g}"
        cache = f"%CEL('grpc-status' in response.headers ? 'no-store' : '{age}')%"
        route["response_headers_to_add"] = [header("cache-control", cache)]
    return route


def _retries(method: Method) -> Config:
    repeatable = method.without_side_effects and not method.streams
    return {
        "retry_on": _REPEATABLE if repeatable else _NEVER_ARRIVED,
        "num_retries": 2,
        "retry_back_off": {"base_interval": "0.025s", "max_interval": "0.25s"},
        # A second try at the host that just failed would be wasted while there are others.
        "retry_host_predicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": typed("extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"),
            }
        ],
        "host_selection_retry_max_attempts": 3,
    }


def _documents(settings: Settings) -> list[Config]:
    files = settings.files
    health = _document("/health", {"inline_string": '{"status":"SERVING"}'}, "application/json")
    health["typed_per_filter_config"] |= without_local_limit()
    return [
        health,
        _document("/openapi.yaml", {"filename": str(files.openapi)}, "application/yaml"),
        _document("/docs", {"filename": str(files.docs)}, "text/html; charset=utf-8"),
    ]


def _document(path: str, body: Config, content_type: str) -> Config:
    return {
        "name": path,
        "match": {"path": path, "headers": [_method_is("GET")]},
        "direct_response": {"status": 200, "body": body},
        "response_headers_to_add": [header("content-type", content_type), header("cache-control", "no-cache")],
        "typed_per_filter_config": {**without_token(), **without_transcoding()},
    }


def _refusals(contract: Contract) -> Iterable[Config]:
    """What the transcoder would answer less exactly: a wrong method is 405 with `allow`, a body that is not JSON is 415."""
    bindings: dict[str, list[Binding]] = defaultdict(list)
    for method in contract.exposed:
        for binding in method.bindings:
            bindings[binding.template].append(binding)
    for template, alternatives in bindings.items():
        path = _path_pattern(template)
        bodies = [binding.verb for binding in alternatives if binding.takes_body]
        if bodies:
            yield _refusal(f"{template} media type", path, 415, [_method_is(*bodies), _media_type_is_not_json()])
        verbs = sorted({binding.verb for binding in alternatives})
        yield _method_not_allowed(template, path, verbs)
    for document in ("/health", "/openapi.yaml", "/docs"):
        yield _method_not_allowed(document, re.escape(document), ["GET"])


def _method_not_allowed(name: str, path: str, allowed: list[str]) -> Config:
    # A preflight asks about a method without using it; the CORS filter answers it on the last route.
    refusal = _refusal(f"{name} method", path, 405, [{**_method_is(*allowed, "OPTIONS"), "invert_match": True}])
    refusal["response_headers_to_add"] = [header("allow", ", ".join(allowed))]
    return refusal


def _refusal(name: str, path: str, status: int, headers: list[Config]) -> Config:
    return {
        "name": name,
        "match": {"safe_regex": {"regex": path}, "headers": headers},
        "direct_response": {"status": status},
        "typed_per_filter_config": {**without_token(), **without_transcoding()},
    }


def _unknown() -> Config:
    """Whatever is left, and a JSON request until the transcoder has given it its method's path.

    It leads nowhere: no client can send the header that would name a cluster, and without one Envoy answers 404. A direct response
    would do the same, but filters overlook the virtual host's CORS policy on such a route.
    """
    return {
        "name": "unknown",
        "match": {"prefix": "/"},
        "route": {"cluster_header": f"{INTERNAL_PREFIX}nowhere", "cluster_not_found_response_code": "NOT_FOUND"},
        "typed_per_filter_config": without_token(),
    }


def _path_pattern(template: str) -> str:
    """The regular expression of a `google.api.http` template whose variables each span one segment."""
    literals = re.split(r"\{[^}]*\}", template)
    return "[^/:]+".join(re.escape(literal) for literal in literals)


def _method_is(*verbs: str) -> Config:
    return {"name": ":method", "string_match": {"safe_regex": {"regex": "|".join(verbs)}}}


def _media_type_is_not_json() -> Config:
    """True for any other type, and false for none: a call without fields needs no body and so no type."""
    return {
        "name": "content-type",
        "string_match": {"safe_regex": {"regex": f"({_JSON})?"}, "ignore_case": False},
        "treat_missing_header_as_empty": True,
        "invert_match": True,
    }


def _cors(settings: Cors) -> Config:
    origins: list[Config] = [
        {"safe_regex": {"regex": ".*"}} if origin == "*" else {"exact": origin} for origin in settings.origins
    ]
    return typed(
        "extensions.filters.http.cors.v3.CorsPolicy",
        allow_origin_string_match=origins,
        allow_methods="GET, POST, PATCH, DELETE",
        allow_headers="authorization, content-type, grpc-timeout, traceparent, tracestate, x-grpc-web, x-user-agent",
        expose_headers="grpc-status, grpc-message, grpc-status-details-bin, retry-after, www-authenticate, x-ratelimit-limit, "
        "x-ratelimit-remaining, x-ratelimit-reset, x-request-id, x-trace-id",
        max_age=str(settings.max_age_seconds),
    )
